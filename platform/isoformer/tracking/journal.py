"""Tracking events on local disk: written before they are sent, acknowledged after.

One JSON object a line. `{"seq": 7, "op": "metrics", …}` is an event; `{"done": 7}` says that MLflow has it;
`{"rejected": 7, "reason": …}` that MLflow refused it for good. A file whose events are all done is deleted.
Files to upload lie in `files/` beside it, as copies of ours, until MLflow has them.
The owner holds a lock on its file, so that a replay never takes the events of a run that is still alive.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TextIO

from isoformer.documents import DocumentError, parse_mapping

Event = dict[str, Any]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """An event that MLflow refused for good, and why."""

    op: str
    run: str
    reason: str


class Journal:
    """The journal of one tracker. Where the disk refuses, a warning says so and events go on in memory."""

    def __init__(self, path: Path, stream: TextIO | None, outstanding: dict[int, Event]) -> None:
        self.path = path
        self.refusals: list[Refusal] = []
        self._stream = stream
        self._outstanding = outstanding
        self._next = max(outstanding, default=-1) + 1

    @classmethod
    def create(cls, folder: Path) -> Self:
        """A new journal under `folder`, locked by this process."""
        path = folder / f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}-{uuid.uuid4().hex[:6]}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stream = path.open("a+", encoding="utf-8")
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            logger.warning(
                "tracking journal %s cannot be written (%s): events are kept in memory", path, error
            )
            return cls(path, None, {})
        return cls(path, stream, {})

    @classmethod
    def adopt(cls, path: Path) -> Self | None:
        """Take over a journal that its owner left behind; None where the owner is still alive."""
        stream = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            return None
        return cls(path, stream, read_outstanding(path))

    def take_over(self) -> tuple[int, int]:
        """Copy in what journals beside this one left outstanding, and delete them.

        Returns the number of events taken, and of journals left alone because their owners live. A kill
        between copy and deletion sends events twice, which MLflow does not notice. Where the copy does not
        reach the disk, they stay in their own journal, too.
        """
        taken = alive = 0
        for path in sorted(self.path.parent.glob("*.jsonl")):
            if path == self.path or not read_outstanding(path):
                continue
            other = Journal.adopt(path)
            if other is None:
                alive += 1
                continue
            for event in other.outstanding:  # "new" no more: its start may have reached MLflow
                self.write({key: value for key, value in event.items() if key not in ("seq", "new")})
                taken += 1
            if self._stream is not None:
                other._mark_done(other.outstanding)
            other.close()
        return taken, alive

    @property
    def outstanding(self) -> list[Event]:
        """Events that were not acknowledged yet, in order."""
        return list(self._outstanding.values())

    def write(self, event: Event) -> Event:
        """Number an event, put it on disk, return it."""
        numbered = {"seq": self._next, **event}
        self._next += 1
        self._outstanding[numbered["seq"]] = numbered
        self._append([numbered])
        return numbered

    def acknowledge(self, events: Iterable[Event]) -> None:
        """MLflow has these: copies of files that they held can go."""
        listed = list(events)
        self._mark_done(listed)
        for event in listed:
            if event["op"] == "file":
                self._forget_copy(Path(str(event.get("file", ""))))

    def reject(self, event: Event, reason: str) -> None:
        """MLflow refused this one for good: sending it again would block all that follow."""
        self._outstanding.pop(event["seq"], None)
        self.refusals.append(Refusal(event["op"], event["run"], reason))
        self._append([{"rejected": event["seq"], "reason": reason}])

    def close(self) -> None:
        """Delete the file where nothing is outstanding or rejected, else leave it for `replay`."""
        if self._stream is None:
            return
        if not self._outstanding and not self.refusals:
            self.path.unlink(missing_ok=True)
        self._stream.close()
        self._stream = None

    def copy_file(self, path: Path) -> Path:
        """A copy of `path` under the same name, kept until the event that names it is acknowledged. OSError
        where it cannot be made; nothing of it is left then.
        """
        copy = self.path.parent / "files" / uuid.uuid4().hex / path.name
        try:
            copy.parent.mkdir(parents=True)
            shutil.copyfile(path, copy)
        except OSError:
            shutil.rmtree(copy.parent, ignore_errors=True)
            raise
        return copy

    def _forget_copy(self, copy: Path) -> None:
        """Delete a copy of ours, and nothing that a line of the journal calls so."""
        if copy.resolve().parent.parent == (self.path.parent / "files").resolve():
            shutil.rmtree(copy.parent, ignore_errors=True)

    def _mark_done(self, events: list[Event]) -> None:
        for event in events:
            self._outstanding.pop(event["seq"], None)
        self._append([{"done": event["seq"]} for event in events])

    def _append(self, lines: list[Event]) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write("".join(json.dumps(line) + "\n" for line in lines))
            self._stream.flush()
        except OSError as error:
            logger.warning("tracking journal %s cannot be written (%s): going on in memory", self.path, error)
            self._stream = None


def is_in_use(path: Path) -> bool:
    """Whether the owner of a journal is alive."""
    with path.open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def read_outstanding(path: Path) -> dict[int, Event]:
    """Events of a journal that are neither done nor rejected; a line torn by a kill is left out."""
    return read_journal(path)[0]


def read_journal(path: Path) -> tuple[dict[int, Event], list[Refusal]]:
    """What is outstanding in a journal, and what MLflow refused; a line torn by a kill is left out."""
    events: dict[int, Event] = {}
    refusals: list[Refusal] = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        entry = _entry(line)
        if entry is None:
            logger.warning("%s, line %d: torn by a kill, left out", path, number)
            continue
        if "op" in entry:
            events[entry["seq"]] = entry
            continue
        event = events.pop(entry["done"] if "done" in entry else entry["rejected"], None)
        if "rejected" in entry and event is not None:
            refusals.append(Refusal(event["op"], event["run"], entry["reason"]))
    return events, refusals


def _entry(line: bytes) -> Event | None:
    """An event, or what became of one; None for a line that says neither."""
    try:
        entry = parse_mapping(line)
    except DocumentError:
        return None
    kinds: dict[str, dict[str, type]] = {
        "op": {"seq": int, "op": str, "run": str},
        "done": {"done": int},
        "rejected": {"rejected": int, "reason": str},
    }
    fields = next((fields for name, fields in kinds.items() if name in entry), None)
    is_whole = fields is not None and all(isinstance(entry.get(name), kind) for name, kind in fields.items())
    return entry if is_whole else None
