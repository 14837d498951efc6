"""Predict expression of the transcripts in a file, with a finished model.

    ray job submit --working-dir . -- python jobs/predict.py --config run.yaml INPUT --output s3://…/predictions

Takes what `isoformer predict` takes and ends with the same exit status.
"""

from __future__ import annotations

import sys

from isoformer.cli import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
