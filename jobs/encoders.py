"""List every encoder that can be named, and where its weights are.

    ray job submit --working-dir . -- python jobs/encoders.py --config run.yaml --set key=value

Takes what `isoformer encoders` takes and ends with the same exit status.
"""

from __future__ import annotations

import sys

from isoformer.cli import main

if __name__ == "__main__":
    main(["encoders", *sys.argv[1:]])
