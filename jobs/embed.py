"""Embed the distinct sequences of a dataset.

    ray job submit --working-dir . -- python jobs/embed.py --config run.yaml --set key=value

Takes what `isoformer embed` takes and ends with the same exit status.
"""

from __future__ import annotations

import sys

from isoformer.cli import main

if __name__ == "__main__":
    main(["embed", *sys.argv[1:]])
