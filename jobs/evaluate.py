"""Score a run on the held-out genes, beside the baselines.

    ray job submit --working-dir . -- python jobs/evaluate.py --config run.yaml --set key=value

Takes what `isoformer evaluate` takes and ends with the same exit status.
"""

from __future__ import annotations

import sys

from isoformer.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
