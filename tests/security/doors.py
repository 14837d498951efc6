"""Run verbs of the command line one after another in one process, on one Ray: `python doors.py TASK.json`.

The task: {"verbs": [[argument, …], …]}. Prints {"statuses": […], "seconds": […], "session": folder} last.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path

import click

from isoformer.cli import main
from isoformer.ray_session import RayConfig, ray_session


def run(arguments: list[str]) -> int | str | None:
    """The exit status of one verb. Its arguments are not repeated: some hold a secret."""
    click.echo(f"\n$ isoformer {arguments[0]}", err=True)
    try:
        main(arguments)
    except SystemExit as ended:
        return ended.code
    except Exception:  # a bug: its traceback is searched for secrets, too
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    verbs = json.loads(Path(sys.argv[1]).read_text())["verbs"]
    with ray_session(RayConfig(num_cpus=4, object_store_mb=200)):
        import ray

        statuses, seconds = [], []
        for arguments in verbs:
            begun = time.monotonic()
            statuses.append(run(arguments))
            seconds.append(round(time.monotonic() - begun, 1))
        session = ray._private.worker.global_worker.node.get_session_dir_path()
    print("\n" + json.dumps({"statuses": statuses, "seconds": seconds, "session": session}))
