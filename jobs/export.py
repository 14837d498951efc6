"""Write a run's model and its encoders into a folder, or into the registry of the tracking server.

    ray job submit --working-dir . -- python jobs/export.py --config run.yaml --register isoformer

Takes what `isoformer export` takes and ends with the same exit status.
"""

from __future__ import annotations

import sys

from isoformer.cli import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
