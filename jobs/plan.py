"""Say what embedding would do, and what is there already.

    ray job submit --working-dir . -- python jobs/plan.py --config run.yaml --set key=value

Takes what `isoformer plan` takes and ends with the same exit status.
"""

from __future__ import annotations

import sys

from isoformer.cli import main

if __name__ == "__main__":
    main(["plan", *sys.argv[1:]])
