"""What runs on the workers: a task that tokenises a shard, and an `EncodeWorker` that encodes and writes
it.

Neither knows Ray, so that both also run in a unit test. Token ids travel between them; embeddings do
not: the worker writes its shard to storage and returns a summary. One worker serves every encoder of a
run, one after the other: importing torch, which is most of the start-up, is paid once a process.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from numpy.typing import NDArray

from isoformer import errors
from isoformer.embeddings import counters
from isoformer.embeddings.cluster import node_id
from isoformer.embeddings.config import EncoderPass
from isoformer.embeddings.encode import Output, PackStats, encode_sequences, order_of_encoding
from isoformer.embeddings.plan import ShardWork
from isoformer.embeddings.profile import hardware
from isoformer.embeddings.shard_file import ShardHeader
from isoformer.embeddings.shard_sequences import TokenizedShard, TranscriptsSource, tokenise
from isoformer.embeddings.store import (
    ShardEntry,
    ShardWriter,
    StoredRows,
    present_entry,
    shard_key,
    stored_rows,
)
from isoformer.embeddings.token_budget import TokenBudget
from isoformer.embeddings.workload import Workload
from isoformer.encoders.registry import load_encoder
from isoformer.encoders.spec import Encoder
from isoformer.errors import EncoderError, IsoformerError
from isoformer.storage import Storage

Stage = Literal["waiting", "loading", "encoding", "publishing"]
_FEW: Final = 3
"""So many sequences of a shard may always be quarantined."""


class Witness(Protocol):
    """Is told of every pack before it is encoded, and remembers when the worker is dead."""

    def note(self, work: tuple[int, int], digests: list[str]) -> None: ...


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
    """What a worker says of a shard that it has published. `entries`: dataset key → manifest entry.

    `started_at`, `encoded_at`: seconds since the epoch, of the first pack and of the end of the last.
    `busy_seconds`: of that time, with the device at work. `load_seconds`: where the encoder had to be loaded.
    """

    encoder: int
    shard: int
    entries: dict[str, ShardEntry]
    workload: Workload
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

    stages: dict[tuple[int, int], Stage]
    tokens: dict[tuple[int, int], int]
    doing: str
    idle_seconds: float
    alive_seconds: float
    busy_seconds: float


def tokenise_work(work: ShardWork, source: TranscriptsSource, passes: Sequence[EncoderPass]) -> Any:
    """A `TokenizedShard`, or the `WorkError` that was met."""
    try:
        return tokenise(source, work.shard, passes[work.encoder].choice)
    except IsoformerError as error:
        return WorkError.of(error)


class EncodeWorker:
    """Holds one encoder at a time, encodes under a lock, publishes outside it: the device does not wait."""

    def __init__(self, settings: WorkerSettings) -> None:
        import torch

        torch.set_num_threads(settings.threads)
        self._settings = settings
        self._device = threading.Lock()
        self._loaded: tuple[int, Encoder, TokenBudget] | None = None
        self._stages: dict[tuple[int, int], Stage] = {}
        self._abandoned: set[tuple[int, int]] = set()
        self._tokens: dict[tuple[int, int], int] = {}
        self._doing = ""
        self._progress_at = time.monotonic()
        self._first_pack_at: float | None = None
        self._busy_seconds = 0.0

    def identity(self) -> tuple[str, str, int]:
        """Host, Ray's node id ("" without Ray) and process id."""
        return socket.gethostname(), node_id(), os.getpid()

    def status(self) -> WorkerStatus:
        """Answered at any time, by a thread of its own."""
        idle_seconds = time.monotonic() - self._progress_at if self._stages else 0.0
        return WorkerStatus(
            stages=dict(self._stages),
            tokens=dict(self._tokens),
            doing=self._doing,
            idle_seconds=idle_seconds,
            alive_seconds=self._alive_seconds(),
            busy_seconds=self._busy_seconds,
        )

    def abandon(self, work: tuple[int, int], *, started_too: bool) -> None:
        """Do not begin a shard; with `started_too`, stop before its next pack as well."""
        if started_too or self._stages.get(work) == "waiting":
            self._abandoned.add(work)

    def encode(
        self, work: ShardWork, shard: TokenizedShard | WorkError, orders: Orders
    ) -> ShardSummary | WorkError | None:
        """Encode, write, verify and publish one shard. None where it was abandoned."""
        if isinstance(shard, WorkError):
            return shard
        self._stages[work.name] = "waiting"
        try:
            return self._encode_and_publish(work, shard, orders)
        except _AbandonedError:
            return None
        except IsoformerError as error:
            return WorkError.of(error)
        finally:
            self._abandoned.discard(work.name)
            self._stages.pop(work.name, None)
            self._tokens.pop(work.name, None)

    def _encode_and_publish(self, work: ShardWork, shard: TokenizedShard, orders: Orders) -> ShardSummary:
        with ExitStack() as opened:
            with self._device:
                self._stop_if_abandoned(work)
                present, missing = self._present(work)
                load_seconds, encoder, budget = self._encoder(work)
                writers = {header.key: ShardWriter(self._settings.storage, header) for header in missing}
                for writer in writers.values():
                    opened.callback(writer.close)
                made = _Made(work, writers, dict(shard.quarantined) | dict(orders.left_out))
                started_at = time.time()
                if writers:
                    self._fill(made, shard, orders, encoder, budget)
                encoded_at, budget_tokens, halvings = time.time(), budget.tokens, budget.halvings
            self._progressed(work, "publishing", f"publishing shard {work.shard}")
            started = time.perf_counter()
            published = {
                key: writer.publish(made.quarantined, shard.counts) for key, writer in writers.items()
            }
        summary = ShardSummary(
            encoder=work.encoder,
            shard=work.shard,
            entries={**present, **published},
            workload=made.workload(published),
            reused=made.reused,
            packs=made.packs,
            padding_tokens=made.padding_tokens,
            started_at=started_at,
            encoded_at=encoded_at,
            busy_seconds=made.busy_seconds,
            load_seconds=load_seconds,
            publish_seconds=time.perf_counter() - started,
            token_budget=budget_tokens,
            budget_halvings=halvings,
            hardware=hardware(self._settings.device),
            worker=_name(),
        )
        self._show(summary)
        return summary

    def _present(self, work: ShardWork) -> tuple[dict[str, ShardEntry], list[ShardHeader]]:
        """What another run has published since the plan was made, and what is still missing."""
        storage = self._settings.storage
        there = [header for header in work.missing if storage.exists(shard_key(header))]
        entries = {header.key: present_entry(storage, header) for header in there}
        return entries, [header for header in work.missing if header.key not in entries]

    def _encoder(self, work: ShardWork) -> tuple[float | None, Encoder, TokenBudget]:
        import torch

        torch.set_num_threads(self._settings.threads)  # threads of a pool have a count each
        if self._loaded is not None and self._loaded[0] == work.encoder:
            return None, self._loaded[1], self._loaded[2]
        started = time.perf_counter()
        encoder_pass = self._settings.passes[work.encoder]
        self._progressed(work, "loading", f"loading {encoder_pass.spec.name}")
        self._loaded = None  # gives the memory back before the next one is loaded
        encoder = load_encoder(encoder_pass.choice, self._settings.device)
        known_hardware, known_tokens = self._settings.known_budgets.get(work.encoder, ("", 0))
        is_known = known_hardware == hardware(self._settings.device)
        budget = self._settings.token_budget.limited(known_tokens if is_known else None)
        self._loaded = (work.encoder, encoder, budget)
        return time.perf_counter() - started, encoder, budget

    def _fill(
        self, made: _Made, shard: TokenizedShard, orders: Orders, encoder: Encoder, budget: TokenBudget
    ) -> None:
        """Rows in the order of encoding: copied where an earlier shard has them, else as packs are done."""
        work = made.work
        if orders.most_tokens is not None:
            budget.shrink_to(orders.most_tokens)

        def before_pack(digests: list[str]) -> None:
            self._stop_if_abandoned(work)
            if orders.witness is not None:
                orders.witness.note(work.name, digests)
            self._progressed(work, "encoding", _told(encoder, work, digests))
            self._first_pack_at = self._first_pack_at or time.monotonic()

        def after_pack(stats: PackStats) -> None:
            made.add(stats)
            self._tokens[work.name] = made.load.tokens
            self._busy_seconds += stats.seconds

        with _earlier_rows(self._settings.storage, work, list(made.writers)) as earlier:
            places = [i for i in order_of_encoding(shard) if shard.digests[i] not in orders.left_out]
            is_reused = {i: earlier.has_all(shard.digests[i]) for i in places}
            encoded = encode_sequences(
                encoder,
                shard.part(i for i in places if not is_reused[i]),
                self._outputs(work, made.writers),
                self._settings.dtype,
                budget,
                alone=orders.alone,
                before_pack=before_pack,
                after_pack=after_pack,
            )
            for place in places:
                digest = shard.digests[place]
                if is_reused[place]:
                    made.keep(digest, earlier.rows(digest))
                    made.reused += 1
                    continue
                sequence = next(encoded)
                if sequence.reason is None:
                    made.keep(sequence.digest, sequence.rows)
                else:
                    made.quarantined[sequence.digest] = sequence.reason
                    self._require_few(made, shard)

    def _outputs(self, work: ShardWork, keys: Mapping[str, object]) -> list[Output]:
        return [
            Output(dataset.key, dataset.spec.hidden_states, dataset.resolution)
            for dataset in self._settings.passes[work.encoder].datasets
            if dataset.key in keys
        ]

    def _require_few(self, made: _Made, shard: TokenizedShard) -> None:
        """EncoderError where so many sequences fail that the weights must be at fault, not the sequences."""
        reasons = [reason for digest, reason in made.quarantined.items() if digest not in shard.quarantined]
        if len(reasons) <= max(_FEW, self._settings.most_quarantined * len(shard.digests)):
            return
        counted = ", ".join(f"{reason} {reasons.count(reason)}" for reason in dict.fromkeys(reasons))
        raise EncoderError(
            f"{self._settings.passes[made.work.encoder].spec.name}: {len(reasons)} of the "
            f"{len(shard.digests)} sequences of shard {made.work.shard} were quarantined ({counted}), more "
            f"than embed.most_quarantined {self._settings.most_quarantined:g}: "
            "weights or precision are at fault"
        )

    def _stop_if_abandoned(self, work: ShardWork) -> None:
        if work.name in self._abandoned:
            raise _AbandonedError

    def _progressed(self, work: ShardWork, stage: Stage, doing: str) -> None:
        self._stages[work.name] = stage
        self._doing, self._progress_at = doing, time.monotonic()

    def _show(self, summary: ShardSummary) -> None:
        encoder = self._settings.passes[summary.encoder].spec.name
        tokens, padding = summary.workload.tokens, summary.padding_tokens
        counters.show("isoformer_padding_fraction", padding / max(1, tokens + padding), encoder=encoder)
        counters.show("isoformer_token_budget", summary.token_budget, encoder=encoder)
        if alive_seconds := self._alive_seconds():
            busy = self._busy_seconds / alive_seconds
            counters.show("isoformer_device_busy_fraction", busy, encoder=encoder)

    def _alive_seconds(self) -> float:
        return time.monotonic() - self._first_pack_at if self._first_pack_at is not None else 0.0


class _AbandonedError(Exception):
    """Another worker has the shard."""


@dataclass
class _Made:
    """A shard in the making."""

    work: ShardWork
    writers: dict[str, ShardWriter]
    quarantined: dict[str, str]
    reused: int = 0
    packs: int = 0
    padding_tokens: int = 0
    busy_seconds: float = 0.0
    load: Workload = field(default_factory=Workload)

    def add(self, stats: PackStats) -> None:
        self.packs += 1
        self.padding_tokens += stats.padding
        self.busy_seconds += stats.seconds
        self.load += stats.load

    def keep(self, digest: str, rows: Mapping[str, NDArray[Any]]) -> None:
        for key, writer in self.writers.items():
            writer.add(digest, rows[key])

    def workload(self, published: Mapping[str, ShardEntry]) -> Workload:
        """What was really encoded and written."""
        return self.load + Workload(output_bytes=sum(entry["bytes"] for entry in published.values()))


@dataclass(frozen=True)
class _EarlierRows:
    """Earlier shards by dataset."""

    shards: Mapping[str, Sequence[StoredRows]]

    def has_all(self, digest: str) -> bool:
        """Whether every dataset has a row of it; False where nothing is to be copied."""
        return bool(self.shards) and all(any(digest in one for one in of) for of in self.shards.values())

    def rows(self, digest: str) -> dict[str, NDArray[Any]]:
        return {key: next(one for one in of if digest in one)[digest] for key, of in self.shards.items()}


@contextmanager
def _earlier_rows(storage: Storage, work: ShardWork, keys: Sequence[str]) -> Iterator[_EarlierRows]:
    if not work.reuse:
        yield _EarlierRows({})
        return
    with ExitStack() as opened:
        yield _EarlierRows(
            {
                key: [opened.enter_context(stored_rows(storage, path)) for path in work.reuse[key]]
                for key in keys
            }
        )


def _told(encoder: Encoder, work: ShardWork, digests: Sequence[str]) -> str:
    return f"{encoder.spec.name}, shard {work.shard}, a pack of {len(digests)} sequences from {digests[0]} on"


def _name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
