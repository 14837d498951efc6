"""What driver and workers tell each other: settings and orders one way, summaries, status and errors back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from isoformer import errors
from isoformer.embeddings.config import EncoderPass
from isoformer.embeddings.store import ShardEntry
from isoformer.embeddings.token_budget import TokenBudget
from isoformer.embeddings.workload import Workload
from isoformer.errors import IsoformerError
from isoformer.storage import Storage

Name = tuple[int, int]
"""A piece of work: the encoder pass and the shard."""
Stage = Literal["waiting", "loading", "encoding", "publishing"]


class Witness(Protocol):
    """Is told of every pack before it is encoded, and remembers when the worker is dead.

    An empty list: no sequence is on the device, whatever happens now is not the fault of one.
    """

    def note(self, work: Name, digests: list[str]) -> None: ...


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker is told once. `known_budgets`: encoder → (hardware, tokens) where memory ran out."""

    storage: Storage
    passes: Sequence[EncoderPass]
    device: str
    dtype: str
    token_budget: TokenBudget
    threads: int
    most_quarantined: float = 1.0
    known_budgets: Mapping[int, tuple[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Orders:
    """How a shard is to be encoded after earlier attempts: what goes alone, or is left out and why."""

    alone: frozenset[str] = frozenset()
    left_out: Mapping[str, str] = field(default_factory=dict)
    most_tokens: int | None = None
    witness: Witness | None = None


@dataclass(frozen=True)
class WorkError:
    """An error as data: raised through Ray it would arrive as a page of tracebacks without its class."""

    kind: str
    text: str

    @classmethod
    def of(cls, error: IsoformerError) -> WorkError:
        return cls(type(error).__name__, str(error))

    def error(self) -> IsoformerError:
        kind = getattr(errors, self.kind)
        found: IsoformerError = kind(self.text)
        return found


@dataclass(frozen=True)
class ShardSummary:
    """What a worker says of a shard that is published. `entries`: dataset key → manifest entry.

    `workload`: what was really encoded and written; `written` of the entries are this worker's own.

    `started_at`, `encoded_at`: of the first pack and of the end of the last, in
    seconds of the worker's own clock.
    `busy_seconds`: of that time, with the device at work. `load_seconds`: where the encoder had to be loaded.
    """

    encoder: int
    shard: int
    entries: dict[str, ShardEntry]
    workload: Workload
    written: int
    reused: int
    packs: int
    padding_tokens: int
    started_at: float
    encoded_at: float
    busy_seconds: float
    load_seconds: float | None
    publish_seconds: float
    token_budget: int
    budget_halvings: int
    hardware: str
    worker: str

    @property
    def encode_seconds(self) -> float:
        return self.encoded_at - self.started_at


@dataclass(frozen=True)
class WorkerStatus:
    """What a worker is at. `stages`: shard → stage; `tokens`: shard → tokens encoded; `doing`: in words.

    `idle_seconds`: since the last progress. `alive_seconds`: since the first pack; `busy_seconds` of them
    with the device at work.
    """

    stages: dict[Name, Stage]
    tokens: dict[Name, int]
    doing: str
    idle_seconds: float
    alive_seconds: float
    busy_seconds: float
