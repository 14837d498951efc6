"""List, verify and clean what a storage root holds.

    ray job submit --working-dir . -- python jobs/store.py --config run.yaml --set key=value

Takes what `isoformer store` takes and ends with the same exit status.
"""

from __future__ import annotations

import sys

from isoformer.cli import main

if __name__ == "__main__":
    main(["store", *sys.argv[1:]])
