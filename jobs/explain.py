"""Explain a model: attention, one transcript, mutagenesis, variants.

    ray job submit --working-dir . -- python jobs/explain.py attention --output FOLDER --config run.yaml

Takes what `isoformer explain` takes and ends with the same exit status.
"""

from __future__ import annotations

import sys

from isoformer.cli import main

if __name__ == "__main__":
    main(["explain", *sys.argv[1:]])
