"""Run the whole road on the shipped real sample.

    ray job submit --working-dir . -- python jobs/demo.py --output out

Takes what `isoformer demo` takes and ends with the same exit status.
"""

from __future__ import annotations

import sys

from isoformer.cli import main

if __name__ == "__main__":
    main(["demo", *sys.argv[1:]])
