"""Make the transcripts dataset from genome, annotation and expression.

    ray job submit --working-dir . -- python jobs/prepare.py --config run.yaml --set key=value

Takes what `isoformer prepare` takes and ends with the same exit status.
"""

from __future__ import annotations

import sys

from isoformer.cli import main

if __name__ == "__main__":
    main(["prepare", *sys.argv[1:]])
