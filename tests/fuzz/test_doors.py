"""Every door with its seeds, what was found there, and some fifty changes: refused well, or read right.

The campaign (`campaign.py`) does the same with many more inputs, guided by coverage.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from fuzz.door import Door, Find, Skip
from fuzz.doors import DOORS
from fuzz.mutation import mutated
from isoformer.errors import InputError, StorageError

CHANGES = 50
SECONDS_A_DOOR = 0.06
FINDS = Path(__file__).parent / "finds"


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if door.is_heavy else name for name, door in DOORS.items()],
)
def test_a_door_keeps_its_promise(name: str, tmp_path: Path) -> None:
    door, chance = DOORS[name], random.Random(name)
    door.warm_up(tmp_path)
    outcomes = [door.try_one(seed, tmp_path) for seed in door.seeds]
    assert outcomes[: door.valid] == ["accepted"] * door.valid
    for path in sorted((FINDS / name.replace(" ", "-")).glob("*")):
        door.try_one(path.read_bytes(), tmp_path)
    ends = time.monotonic() + SECONDS_A_DOOR
    for number in range(CHANGES):
        if number and time.monotonic() > ends:
            break
        seed = chance.choice(door.seeds[: door.valid])
        data = mutated(seed, door.words, chance)
        try:
            door.try_one(data, tmp_path)
        except Find as find:
            pytest.fail(f"{name}: {find}; input {data[:2000]!r}")


def test_every_find_that_is_kept_is_of_a_door() -> None:
    named = {name.replace(" ", "-") for name in DOORS}
    assert {path.name for path in FINDS.iterdir()} <= named


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (ValueError("x"), "ValueError at test_doors.py"),
        (AssertionError("other values"), "wrong answer at test_doors.py"),
        (InputError("x\x1b", file="a.fa"), ""),
        (StorageError("nowhere"), "message without a place"),
        (RecursionError("deep"), "RecursionError"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (Skip(), ""),
    ],
    ids=str,
)
def test_the_harness_tells_a_find_from_an_error(problem: BaseException, kind: str, tmp_path: Path) -> None:
    def enter(data: bytes, folder: Path) -> None:
        raise problem

    door = Door("made", enter, (b"",), places=("a.fa",))
    if not kind:
        assert door.try_one(b"", tmp_path) in ("refused", "skipped")
        return
    if isinstance(problem, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            door.try_one(b"", tmp_path)
        return
    with pytest.raises(Find, match=kind):
        door.try_one(b"", tmp_path)


def test_the_harness_sees_what_hangs_and_what_is_run(tmp_path: Path) -> None:
    def hang(data: bytes, folder: Path) -> None:
        while True:
            pass

    def run(data: bytes, folder: Path) -> None:
        (folder / "code-was-run").touch()

    with pytest.raises(Find, match="too slow"):
        Door("hangs", hang, (b"",), seconds=0.1).try_one(b"", tmp_path)
    with pytest.raises(Find, match="code was run"):
        Door("runs", run, (b"",)).try_one(b"", tmp_path)


def test_the_campaign_of_this_version_found_nothing_and_tried_every_door() -> None:
    report = json.loads((Path(__file__).parent / "campaign.json").read_text())
    assert {line["door"] for line in report["doors"]} == set(DOORS)
    assert report["total"]["inputs"] >= 100_000 and report["total"]["finds"] == 0
    assert all(line["inputs"] > 0 and line["accepted"] > 0 and line["edges"] > 0 for line in report["doors"])
