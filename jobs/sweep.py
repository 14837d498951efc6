"""Search architecture, encoders, resolution and learning rate.

    ray job submit --working-dir . -- python jobs/sweep.py --config run.yaml --set key=value

Takes what `isoformer sweep` takes and ends with the same exit status.
"""

from __future__ import annotations

import sys

from isoformer.cli import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
