"""Events of a run go together as far as its start and its end allow."""

from __future__ import annotations

import pytest

from isoformer.tracking.journal import Event
from isoformer.tracking.merging import merged


def start(run: str) -> Event:
    return {"op": "start", "run": run, "params": {"heads": "4"}, "tags": {}}


def metrics(run: str, step: int) -> Event:
    return {"op": "metrics", "run": run, "step": step, "values": {"loss": 0.5}}


def end(run: str) -> Event:
    return {"op": "end", "run": run, "status": "FINISHED"}


def test_what_lies_between_start_and_end_is_one_part_a_run() -> None:
    text = {"op": "text", "run": "a", "text": "", "path": "config.yaml"}
    tags = [{"op": "tags", "run": "a", "tags": {"state": state}} for state in ("running", "complete")]
    events = [
        start("a"),
        start("b"),
        metrics("a", 0),
        text,
        metrics("b", 0),
        metrics("a", 1),
        *tags,
        end("a"),
    ]
    first, second = merged(events)
    assert (first.run, second.run) == ("a", "b")
    assert [event["step"] for event in first.metrics] == [0, 1]
    assert (first.params, first.tags) == ({"heads": "4"}, {"state": "complete"})
    assert first.artifacts == [text] and first.end == end("a") and second.end is None


def test_nothing_is_moved_before_a_start_or_behind_an_end() -> None:
    parts = merged([metrics("a", 0), start("a"), metrics("a", 1), end("a"), metrics("a", 2), start("a")])
    assert [(part.start is not None, [event["step"] for event in part.metrics]) for part in parts] == [
        (False, [0]),
        (True, [1]),
        (False, [2]),
        (True, []),
    ]


def test_an_event_of_another_version_is_named() -> None:
    with pytest.raises(LookupError, match="'sing'"):
        merged([{"op": "sing", "run": "a"}])
