"""Train a small masked language model on a dataset's sequences.

    ray job submit --working-dir . -- python jobs/pretrain.py --config run.yaml --set key=value

Takes what `isoformer pretrain` takes and ends with the same exit status.
"""

from __future__ import annotations

import sys

from isoformer.cli import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
