"""Send what a tracking server missed, or say what waits.

    ray job submit --working-dir . -- python jobs/track.py --config run.yaml --set key=value

Takes what `isoformer track` takes and ends with the same exit status.
"""

from __future__ import annotations

import sys

from isoformer.cli import main

if __name__ == "__main__":
    main(["track", *sys.argv[1:]])
