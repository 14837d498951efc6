"""Check installation, storage, tracking and cluster.

    ray job submit --working-dir . -- python jobs/doctor.py --config run.yaml --set key=value

Takes what `isoformer doctor` takes and ends with the same exit status.
"""

from __future__ import annotations

import sys

from isoformer.cli import main

if __name__ == "__main__":
    main(["doctor", *sys.argv[1:]])
