"""Write the static HTML report.

    ray job submit --working-dir . -- python jobs/report.py --config run.yaml --set key=value

Takes what `isoformer report` takes and ends with the same exit status.
"""

from __future__ import annotations

import sys

from isoformer.cli import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
