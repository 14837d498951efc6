"""What the driver of an embedding run knows of each shard and of each worker."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from isoformer.embeddings.messages import Name, Orders, WorkerStatus
from isoformer.embeddings.plan import ShardWork

Ref = Any
"""A Ray object reference."""


@dataclass
class Item:
    """A shard to be done, the workers that have it, and how its earlier attempts went."""

    work: ShardWork
    tokens: Ref | None = None
    workers: list[Slot] = field(default_factory=list)
    orders: Orders = field(default_factory=Orders)
    failures: int = 0
    is_watched: bool = False
    strikes: Counter[str] = field(default_factory=Counter)
    not_before: float = 0.0


@dataclass(eq=False)
class Slot:
    """A worker: what it has been given, what it last said of itself."""

    handle: Any
    identity: Ref | None
    place: tuple[str, str, int] = ("", "", 0)
    running: dict[Ref, Name] = field(default_factory=dict)
    encoder: int | None = None
    status: WorkerStatus | None = None
    asked: Ref | None = None
    answered_at: float = 0.0
    encoding_since: dict[Name, float] = field(default_factory=dict)
    given_at: dict[Name, float] = field(default_factory=dict)
    kind: str = "worker_lost"
    killed_at: float | None = None

    @property
    def is_ready(self) -> bool:
        return self.identity is None

    def forget(self, ref: Ref) -> None:
        """It has returned."""
        self.given_at.pop(self.running.pop(ref), None)

    def still_seconds(self, now: float) -> float:
        """Since it last answered or made progress with what it was given."""
        silent = now - self.answered_at if self.asked is not None else 0.0
        if not self.running or self.status is None:
            return silent
        given = now - max(self.given_at.values())  # it may still wait for the tokens of what it got last
        return max(silent, min(given, self.status.idle_seconds if self.status.stages else given))

    @property
    def doing(self) -> str:
        return (self.status.doing if self.status else "") or "before its first pack"

    @property
    def told(self) -> str:
        return f"{self.place[0]}:{self.place[2]}" if self.is_ready else "a worker that has not started"
