"""Fit the fusion model on cached embeddings.

    ray job submit --working-dir . -- python jobs/train.py --config run.yaml --set key=value

Takes what `isoformer train` takes and ends with the same exit status.
"""

from __future__ import annotations

import sys

from isoformer.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
