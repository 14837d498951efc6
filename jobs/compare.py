"""Set finished runs side by side, in the terminal and on an HTML page.

    ray job submit --working-dir . -- python jobs/compare.py RUN RUN --config run.yaml --set key=value

Takes what `isoformer compare` takes and ends with the same exit status.
"""

from __future__ import annotations

import sys

from isoformer.cli import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
