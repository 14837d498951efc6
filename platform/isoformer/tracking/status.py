"""What waits in the journals of a folder, and whether the store would take it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isoformer.errors import StorageError
from isoformer.tracking.config import TrackingConfig
from isoformer.tracking.journal import Refusal, is_in_use, read_journal
from isoformer.tracking.tracker import probe


@dataclass(frozen=True)
class JournalStatus:
    """One file: events that wait, by kind; their runs; what MLflow refused; whether its owner is alive."""

    path: Path
    events: dict[str, int]
    runs: int
    refusals: tuple[Refusal, ...]
    in_use: bool

    @property
    def waiting(self) -> int:
        return sum(self.events.values())


@dataclass(frozen=True)
class TrackingStatus:
    """`answer`: what the store said, or why it did not answer."""

    address: str
    answers: bool
    answer: str
    journals: tuple[JournalStatus, ...]

    @property
    def waiting(self) -> int:
        return sum(journal.waiting for journal in self.journals)

    def to_json(self) -> dict[str, Any]:
        return {"waiting": self.waiting, **asdict(self)}


def tracking_status(config: TrackingConfig) -> TrackingStatus:
    """Look at the journals and ask the store one question. A SQLite store that is not there is not made."""
    journals = tuple(_journal_status(path) for path in sorted(config.journal_folder.glob("*.jsonl")))
    if config.is_missing:
        return TrackingStatus(config.shown_uri, True, "no store yet: the first run makes it", journals)
    try:
        said, answers = probe(config, str(config.local_folder)), True
    except StorageError as error:
        said, answers = str(error), False
    return TrackingStatus(config.shown_uri, answers, said, journals)


def _journal_status(path: Path) -> JournalStatus:
    outstanding, refusals = read_journal(path)
    events = list(outstanding.values())
    return JournalStatus(
        path=path,
        events=dict(Counter(event["op"] for event in events)),
        runs=len({event["run"] for event in events}),
        refusals=tuple(refusals),
        in_use=is_in_use(path),
    )
