"""A disk that runs full and a clock that is wrong, on a root in a local folder.

Each verb refuses in one line and leaves nothing half-written where its root or its scratch is full; with room
again the same command goes on, here under a clock that is days off. A full tracking journal ends nothing.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from chaos.attempts import ATTEMPT_SECONDS, Attempt, attempted
from chaos.ledger import Ledger
from chaos.pipeline import RUN, STUDY, VERBS, Peace, Place, require_equal, results
from chaos.surroundings import Surroundings, full, mount, placed
from isoformer.storage import LocalStorage

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]

FAKETIME: Final = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
CRASHES: Final = 2
"""Of faketime's own, that are borne with."""
IN_GETENV: Final = re.compile(r"^PC: @ .*\bgetenv$", re.MULTILINE)
DAYS_OFF: Final = {"prepare": "-40d", "embed": "+3d", "train": "-400d", "sweep": "+40d"}


@pytest.fixture(scope="module")
def small(around: Surroundings, sources: dict[str, Any], ledger: Ledger) -> Iterator[Place]:
    """A root, and beside it the tracking journal, on a small disk each."""
    root, journal = around.folder / "small", around.folder / "small-journal"
    mounted = [place for place in (root, journal) if (place.mkdir() or mount(place))]
    if len(mounted) < 2 or not around.folder.joinpath("scratch").is_mount():
        pytest.skip("this user may not mount a small file system")
    around.proxy.probability = 0.0
    place = placed(around, str(root), "small", sources)
    yield Place(place.root, place.storage, place.tracking, place.study_url, place.settings)
    for one in mounted:
        subprocess.run(["umount", "--lazy", str(one)], check=True)


@contextmanager
def verb(around: Surroundings, place: Place, name: str, **environment: str) -> Iterator[Attempt]:
    command = ["--config", str(place.settings), *VERBS[name]]
    command += ["--set", f"tracking.folder={around.folder / 'small-journal'}"]
    with attempted(name, command, around.folder, {**around.environment(), **environment}) as attempt:
        yield attempt


def at_another_time(offset: str) -> dict[str, str]:
    """The environment of a process whose clock is off; timeouts are measured by another one."""
    if not FAKETIME.exists():
        pytest.skip("faketime is not installed")
    mended = os.pathsep.join([str(Path(__file__).with_name("clock")), os.environ.get("PYTHONPATH", "")])
    preloaded = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    return {**preloaded, "FAKETIME_CACHE_DURATION": "86400", "PYTHONPATH": mended.rstrip(os.pathsep)}


def crashed_by_faketime(attempt: Attempt) -> bool:
    """faketime looks into the environment at every `getpid`, and crashes there where another thread of the
    process sets a variable meanwhile. Without its cache it looks there for the time, too.
    """
    return attempt.process.returncode == -signal.SIGSEGV and bool(IN_GETENV.search(attempt.said()))


def has_begun(place: Place, name: str) -> bool:
    """Whether a verb is in the middle of its work, where it has a middle."""
    key = {"train": f"runs/{RUN}/resume/latest.json", "sweep": f"studies/{STUDY}/checkpoints/"}.get(name, "")
    return bool(place.storage.list(key)) if key else True


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_on_a_full_disk_refuses_and_goes_on_with_room_and_a_wrong_clock(
    name: str, around: Surroundings, small: Place, ledger: Ledger
) -> None:
    for where in ("root", "scratch") if name in ("embed", "sweep") else ("root",):
        disk = Path(small.root) if where == "root" else around.folder / "scratch"
        with verb(around, small, name) as attempt:
            while where == "root" and attempt.is_running and not has_begun(small, name):
                time.sleep(0.05)
            filler = full(disk)
            ledger.add(name, f"full disk: {where}", where, started_at=attempt.started_at)
            attempt.process.wait(timeout=ATTEMPT_SECONDS)
            filler.unlink()
        if attempt.process.returncode == 0:  # it needed no more room there
            ledger.settle("went on")
            continue
        assert "the disk is full; free some space" in attempt.error()
        ledger.settle("refused with a clear error", attempt.error())
        assert isinstance(small.storage, LocalStorage) and not small.storage.abandoned()
    journal = full(around.folder / "small-journal")
    for _ in range(CRASHES + 1):
        with verb(around, small, name, **at_another_time(DAYS_OFF[name])) as attempt:
            ledger.add(name, "full disk: journal", "tracking-journal", started_at=attempt.started_at)
            ledger.add(name, "clock: wrong by days", DAYS_OFF[name], started_at=attempt.started_at)
            attempt.process.wait(timeout=ATTEMPT_SECONDS)
        if not crashed_by_faketime(attempt):
            break
        ledger.settle("run again")
    assert attempt.process.returncode == 0, attempt.tail()
    journal.unlink()
    ledger.settle("went on")
    ledger.recovered()
    if name == "embed":  # a driver and workers whose clocks differ by days
        told = json.loads(small.storage.read_bytes("reports/embed.json"))
        assert 0 < told["startup_seconds"] < told["wall_seconds"] < 240


def test_the_results_are_those_of_a_run_in_peace(small: Place, peace: Peace, ledger: Ledger) -> None:
    require_equal(results(small), peace.results)
    ledger.checks["objects equal on a small disk"] = len(peace.results.objects)


@pytest.mark.parametrize("offset", ["+2h", "-2h"])
def test_a_bucket_refuses_a_wrong_clock_and_the_error_says_so(
    offset: str, around: Surroundings, peace: Peace, ledger: Ledger
) -> None:
    command = ["--config", str(around.folder / "peace.yaml")]
    environment = {**around.environment(), **at_another_time(offset)}
    with attempted("prepare", command, around.folder, environment) as attempt:
        ledger.add("prepare", "clock: refused by the bucket", offset, started_at=attempt.started_at)
        attempt.process.wait(timeout=120)
    assert "this machine's clock is wrong" in attempt.error()
    ledger.settle("refused with a clear error", attempt.error())
    with attempted("prepare", command, around.folder, around.environment()) as attempt:
        assert attempt.process.wait(timeout=120) == 0, attempt.tail()
    ledger.recovered()
