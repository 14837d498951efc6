"""Measure against named alternatives on the machine that the job runs on.

    ray job submit --working-dir . -- python jobs/benchmark.py encoders --json

Takes what `isoformer benchmark` takes and ends with the same exit status.
"""

from __future__ import annotations

import sys

from isoformer.cli import main

if __name__ == "__main__":
    main(["benchmark", *sys.argv[1:]])
