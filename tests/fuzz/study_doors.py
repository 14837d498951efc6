"""The doors of a study and its tracking: trials, final models, the database, requests, journals.

The page that is made of them shows nothing of it as markup; what waits in a journal is taken over once.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from functools import cache
from pathlib import Path

import optuna

from fuzz.door import Door
from fuzz.seeds import JSON_WORDS, MARKUP, NOT_JSON
from isoformer.report.study import read_study
from isoformer.report.sweep_page import render
from isoformer.storage import open_storage
from isoformer.sweep.control import Control
from isoformer.sweep.database import open_storage_at
from isoformer.tracking import TrackingConfig
from isoformer.tracking.journal import Journal, is_in_use, read_journal
from made_study import a_study, some_finals


def request(data: bytes, folder: Path) -> None:
    """request.json: what a running sweep is asked."""
    (folder / "studies" / "made").mkdir(parents=True)
    (folder / "studies" / "made" / "request.json").write_bytes(data)
    assert Control(open_storage(folder), "made").request in (None, "pause", "stop", "cancel")


def trials(data: bytes, folder: Path) -> None:
    """trials.json, and the page that is made of it."""
    _enter_study(folder, {"trials.json": data}, data)


def finals(data: bytes, folder: Path) -> None:
    _enter_study(folder, {"trials.json": _trials(), "finals.json": data}, data)


def _enter_study(folder: Path, files: dict[str, bytes], data: bytes) -> None:
    (folder / "studies" / "made").mkdir(parents=True)
    for name, content in files.items():
        (folder / "studies" / "made" / name).write_bytes(content)
    found = read_study(open_storage(folder), "made")
    if data not in (_trials(), _finals()) and zlib.crc32(data) % READ_TO_DRAWN:
        return
    page = render(found, str(folder), TrackingConfig(folder=str(folder)))
    assert MARKUP not in page, "a text of the study is markup of the page"


@cache
def _trials() -> bytes:
    study = a_study(6)
    study["trials"][0]["error"] = MARKUP
    return json.dumps(study).encode()


@cache
def _finals() -> bytes:
    return json.dumps(some_finals(a_study(6), models=1, seeds=2)).encode()


def study_database(data: bytes, folder: Path) -> None:
    """study.db: the rows of every study in it."""
    (folder / "study.db").write_bytes(data)
    from isoformer.sweep.study import Study

    storage = open_storage_at(f"sqlite:///{folder / 'study.db'}")
    try:
        for trial in Study(storage, "made", ["maximize"]).rows():
            assert trial.number >= 0 and trial.state
    finally:
        storage.engine.dispose()


@cache
def _study_db() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        storage = open_storage_at(f"sqlite:///{folder}/study.db")
        study = optuna.create_study(storage=storage, study_name="made", direction="maximize")
        for value in (0.1, 0.4):
            trial = study.ask()
            trial.suggest_float("x", 0, 1)
            study.tell(trial, value)
        storage.engine.dispose()
        return Path(folder, "study.db").read_bytes()


def journal(data: bytes, folder: Path) -> None:
    """A tracker's journal: what is outstanding is taken over once, and nothing else is."""
    (folder / "old.jsonl").write_bytes(data)
    events, refusals = read_journal(folder / "old.jsonl")
    assert not is_in_use(folder / "old.jsonl")
    assert all(isinstance(event, dict) and "op" in event for event in events.values())
    assert all(isinstance(one.op, str) and isinstance(one.run, str) for one in refusals), refusals
    mine = Journal.create(folder)
    taken, alive = mine.take_over()
    assert (taken, alive) == (len(events), 0), "taken over"
    mine.acknowledge(mine.outstanding)
    mine.close()
    assert not list(folder.glob("*-*.jsonl")), "left behind"


READ_TO_DRAWN = 16
"""A page has a dozen figures, and takes seconds."""
JOURNAL = (
    b'{"seq": 0, "op": "start", "run": "a", "new": true}\n'
    b'{"seq": 1, "op": "metrics", "run": "a", "metrics": {"x": 1}}\n{"done": 0}\n'
    b'{"seq": 2, "op": "end", "run": "a"}\n{"rejected": 2, "reason": "no"}\n{"seq": 3, "op": "fil'
)

DOORS = (
    Door(
        "sweep request",
        request,
        (b'{"request": "pause", "at": 1}', b'{"request": ["pause"]}', *NOT_JSON),
        JSON_WORDS,
        ("request.json",),
    ),
    Door(
        "trials",
        trials,
        (_trials(), *NOT_JSON),
        (*JSON_WORDS, b"complete", b"params", b"curve", b"tissues"),
        ("trials.json",),
        seconds=30,
        is_heavy=True,
    ),
    Door(
        "finals",
        finals,
        (_finals(), *NOT_JSON),
        (*JSON_WORDS, b"test_mean", b"runs"),
        ("finals.json",),
        seconds=30,
        is_heavy=True,
    ),
    Door(
        "study database",
        study_database,
        (_study_db(), _study_db()[:3000], b"SQLite format 3\0", b""),
        (b"COMPLETE", b"RUNNING", b"\xff" * 8, b"\0" * 16, b"CREATE TABLE", b"v3.2.0.a"),
        ("study.db",),
        seconds=30,
    ),
    Door(
        "tracking journal",
        journal,
        (
            JOURNAL,
            b'{"op": "metrics"}\n',
            b"3\n",
            b'{"done": [1]}\n',
            b'{"seq": 0, "op": "x", "run": "a"}\n{"rejected": 0}\n',
            *NOT_JSON,
        ),
        JSON_WORDS,
        ("jsonl",),
    ),
)
