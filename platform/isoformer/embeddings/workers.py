"""What runs on the workers: a task that tokenises a shard, and an `EncodeWorker` that encodes and writes
it.

Neither knows Ray, so that both also run in a unit test. Token ids travel between them; embeddings do
not: the worker writes its shard to storage and returns a summary. One worker serves every encoder of a
run, one after the other: importing torch, which is most of the start-up, is paid once a process.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Final

from numpy.typing import NDArray

from isoformer.embeddings.cluster import node_id
from isoformer.embeddings.config import EncoderPass
from isoformer.embeddings.counters import pack_done, shard_done
from isoformer.embeddings.encode import Output, PackStats, encode_sequences, order_of_encoding
from isoformer.embeddings.messages import (
    Name,
    Orders,
    ShardSummary,
    Stage,
    Witness,
    WorkError,
    WorkerSettings,
    WorkerStatus,
)
from isoformer.embeddings.plan import ShardWork
from isoformer.embeddings.profile import hardware
from isoformer.embeddings.shard_file import ShardHeader
from isoformer.embeddings.shard_sequences import TokenizedShard, TranscriptsSource, tokenise
from isoformer.embeddings.store import (
    ShardEntry,
    ShardWriter,
    present_entry,
    rows_by_digest,
    sequences_digest,
    shard_key,
    sweep_scratch,
)
from isoformer.embeddings.token_budget import TokenBudget
from isoformer.embeddings.workload import Workload
from isoformer.encoders.registry import load_encoder
from isoformer.encoders.spec import Encoder
from isoformer.errors import EncoderError, FingerprintError, IsoformerError
from isoformer.storage import Storage

_Rows = dict[str, NDArray[Any]]
_FEW: Final = 3
"""So many sequences of a shard may always be quarantined."""


def tokenise_work(
    work: ShardWork, source: TranscriptsSource, passes: Sequence[EncoderPass]
) -> tuple[WorkError | None, TokenizedShard]:
    """The error that was met, if one was, and the shard's sequences, which only a worker needs to see."""
    try:
        return None, tokenise(source, work.shard, passes[work.encoder].choice)
    except IsoformerError as error:
        return WorkError.of(error), TokenizedShard.empty()


class EncodeWorker:
    """Holds one encoder at a time. A thread of its own encodes, others publish: the device does not wait."""

    def __init__(self, settings: WorkerSettings) -> None:
        sweep_scratch()
        self._settings = settings
        # one thread for all that torch does: each thread that calls it has a pool of helpers of its own, and
        # helpers of several pools sleep between two operations instead of spinning
        self._device = ThreadPoolExecutor(1, "device")
        self._device.submit(_set_threads, settings.threads).result()  # imports torch, before there is work
        self._loaded: tuple[int, Encoder] | None = None
        self._budgets: dict[int, TokenBudget] = {}
        self._stages: dict[Name, Stage] = {}
        self._abandoned: set[Name] = set()
        self._tokens: dict[Name, int] = {}
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

    def abandon(self, work: Name, *, started_too: bool) -> None:
        """Do not begin a shard; with `started_too`, stop before its next pack as well."""
        if started_too or self._stages.get(work) == "waiting":
            self._abandoned.add(work)

    def encode(
        self, work: ShardWork, shard: TokenizedShard, orders: Orders
    ) -> ShardSummary | WorkError | None:
        """Encode, write, verify and publish one shard. None where it was abandoned."""
        if not self._stages:
            self._progress_at = time.monotonic()
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
        _require_same_sequences(work, shard, self._settings.storage.uri)
        present, missing = self._present(work)
        with ExitStack() as opened:
            writers = {header.key: ShardWriter(self._settings.storage, header) for header in missing}
            for writer in writers.values():
                opened.callback(writer.close)
            made = _Made(work, writers, dict(shard.quarantined) | dict(orders.left_out))
            copied = _copied(self._settings.storage, work, missing)
            encoded = self._device.submit(self._encode, made, shard, orders, copied).result()
            self._progressed(work, "publishing", f"publishing shard {work.shard}")
            published, publish_seconds = self._publish(made, shard.counts)
        summary = replace(
            encoded,
            entries={**present, **published},
            workload=made.load + Workload(output_bytes=sum(entry["bytes"] for entry in published.values())),
            written=len(published),
            publish_seconds=publish_seconds,
        )
        shard_done(self._settings.passes[work.encoder].spec.name, summary, self.status())
        return summary

    def _encode(
        self, made: _Made, shard: TokenizedShard, orders: Orders, copied: Mapping[str, _Rows]
    ) -> ShardSummary:
        """The part that needs the device; nothing of the encoder is held on to afterwards."""
        work = made.work
        self._stop_if_abandoned(work)
        _note(orders.witness, work, [])
        load_seconds, encoder = self._encoder(work)
        budget = self._budget(work, orders)
        started_at = time.monotonic()
        if made.writers:
            self._fill(made, shard, orders, encoder, budget, copied)
        _note(orders.witness, work, [])
        return ShardSummary(
            encoder=work.encoder,
            shard=work.shard,
            entries={},
            workload=made.load,
            written=0,
            reused=made.reused,
            packs=made.packs,
            padding_tokens=made.padding_tokens,
            started_at=started_at,
            encoded_at=time.monotonic(),
            busy_seconds=made.busy_seconds,
            load_seconds=load_seconds,
            publish_seconds=0.0,
            token_budget=budget.tokens,
            budget_halvings=budget.halvings,
            hardware=hardware(self._settings.device),
            worker=_name(),
        )

    def _publish(self, made: _Made, counts: Mapping[str, int]) -> tuple[dict[str, ShardEntry], float]:
        started, published = time.perf_counter(), {}
        for key, writer in made.writers.items():
            published[key] = writer.publish(made.quarantined, dict(counts))
            self._progressed(made.work, "publishing", f"publishing shard {made.work.shard}")
        return published, time.perf_counter() - started

    def _present(self, work: ShardWork) -> tuple[dict[str, ShardEntry], list[ShardHeader]]:
        """What another run has published since the plan was made, and what is still missing."""
        storage = self._settings.storage
        there = [header for header in work.missing if storage.exists(shard_key(header))]
        entries = {header.key: present_entry(storage, header) for header in there}
        return entries, [header for header in work.missing if header.key not in entries]

    def _encoder(self, work: ShardWork) -> tuple[float | None, Encoder]:
        if self._loaded is not None and self._loaded[0] == work.encoder:
            return None, self._loaded[1]
        started = time.perf_counter()
        encoder_pass = self._settings.passes[work.encoder]
        self._progressed(work, "loading", f"loading {encoder_pass.spec.name}")
        self._loaded = None  # gives the memory back before the next one is loaded
        self._loaded = (work.encoder, load_encoder(encoder_pass.choice, self._settings.device))
        return time.perf_counter() - started, self._loaded[1]

    def _budget(self, work: ShardWork, orders: Orders) -> TokenBudget:
        """This worker's, of this encoder: what was halved once stays halved."""
        if work.encoder not in self._budgets:
            known_hardware, known_tokens = self._settings.known_budgets.get(work.encoder, ("", 0))
            is_known = known_hardware == hardware(self._settings.device)
            self._budgets[work.encoder] = self._settings.token_budget.limited(
                known_tokens if is_known else None
            )
        budget = self._budgets[work.encoder]
        if orders.most_tokens is not None:
            budget.shrink_to(orders.most_tokens)
        return budget

    def _fill(
        self,
        made: _Made,
        shard: TokenizedShard,
        orders: Orders,
        encoder: Encoder,
        budget: TokenBudget,
        copied: Mapping[str, _Rows],
    ) -> None:
        """Rows in the order of encoding: copied where earlier shards have them, else as packs are done."""
        work = made.work

        def before_pack(digests: list[str]) -> None:
            self._stop_if_abandoned(work)
            _note(orders.witness, work, digests)
            self._progressed(work, "encoding", _told(encoder, work, digests))
            self._first_pack_at = self._first_pack_at or time.monotonic()

        def after_pack(stats: PackStats) -> None:
            made.add(stats)
            self._tokens[work.name] = made.load.tokens
            self._busy_seconds += stats.seconds
            pack_done(encoder.spec.name, stats.load.tokens, stats.seconds)

        places = [i for i in order_of_encoding(shard) if shard.digests[i] not in orders.left_out]
        is_copied = [shard.digests[place] in copied for place in places]
        encoded = encode_sequences(
            encoder,
            shard.part(place for place, is_there in zip(places, is_copied, strict=True) if not is_there),
            self._outputs(work, made.writers),
            self._settings.dtype,
            budget,
            alone=orders.alone,
            before_pack=before_pack,
            after_pack=after_pack,
        )
        for place, is_there in zip(places, is_copied, strict=True):
            if is_there:
                made.keep(shard.digests[place], copied[shard.digests[place]])
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
            Output.of(dataset)
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

    def keep(self, digest: str, rows: _Rows) -> None:
        for key, writer in self.writers.items():
            writer.add(digest, rows[key])


def _copied(storage: Storage, work: ShardWork, missing: Sequence[ShardHeader]) -> dict[str, _Rows]:
    """Digest → a row a dataset, of sequences that earlier shards of all the datasets have."""
    if not work.reuse or not missing:
        return {}
    rows: dict[str, _Rows] = {}
    for header in missing:
        for path, digests in work.reuse[header.key].items():
            for digest, values_LD in rows_by_digest(storage, path, header, set(digests)).items():
                rows.setdefault(digest, {})[header.key] = values_LD
    return {digest: row for digest, row in rows.items() if len(row) == len(missing)}


def _require_same_sequences(work: ShardWork, shard: TokenizedShard, uri: str) -> None:
    """FingerprintError where the transcripts were prepared anew since the plan."""
    found = sequences_digest([*shard.digests, *shard.quarantined])
    planned = work.missing[0].sequences_digest
    if found != planned:
        raise FingerprintError(
            f"{uri}: shard {work.shard} of the transcripts holds other sequences ({found}) than when the run "
            f"was planned ({planned}): it was prepared anew; run embed again, and it uses what is there"
        )


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _note(witness: Witness | None, work: ShardWork, digests: list[str]) -> None:
    if witness is not None:
        witness.note(work.name, digests)


def _told(encoder: Encoder, work: ShardWork, digests: Sequence[str]) -> str:
    return f"{encoder.spec.name}, shard {work.shard}, a pack of {len(digests)} sequences from {digests[0]} on"


def _name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
