"""Events put together: what one run gets between its opening and its closing goes to MLflow in few requests.

In: events in the order in which they were written. Out: parts in the order in which their runs first appear;
of one run nothing changes places with its `start` or its `end`. Nothing here knows MLflow.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from isoformer.tracking.journal import Event


@dataclass
class RunPart:
    """Events of one run that may go together: a start, then anything in any order, then an end."""

    run: str
    start: Event | None = None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[Event] = field(default_factory=list)
    inputs: list[Event] = field(default_factory=list)
    artifacts: list[Event] = field(default_factory=list)
    end: Event | None = None

    def add(self, event: Event) -> None:
        """Take one event in. Later tags and parameters replace earlier ones of the same name."""
        match event["op"]:
            case "start":
                self.start = event
                self.params.update(event["params"])
            case "metrics":
                self.metrics.append(event)
            case "tags":
                self.tags.update(event["tags"])
            case "input":
                self.inputs.append(event)
            case "text" | "file":
                self.artifacts.append(event)
            case "end":
                self.end = event
            case other:
                raise LookupError(f"unknown event {other!r}: written by another version")


def merged(events: Iterable[Event]) -> list[RunPart]:
    """The parts that these events make."""
    parts: list[RunPart] = []
    latest: dict[str, RunPart] = {}
    for event in events:
        part = latest.get(event["run"])
        if part is None or part.end is not None or event["op"] == "start":
            part = RunPart(event["run"])
            parts.append(part)
            latest[event["run"]] = part
        part.add(event)
    return parts
