"""Put an encoder's published weights into the storage root, or list those there.

    ray job submit --working-dir . -- python jobs/weights.py pull NAME --config run.yaml --set key=value

Takes what `isoformer weights` takes and ends with the same exit status.
"""

from __future__ import annotations

import sys

from isoformer.cli import main

if __name__ == "__main__":
    main(["weights", *sys.argv[1:]])
