"""What runs on the workers: a task that tokenises a shard, an actor that encodes it and writes it.

Both take and return one Arrow row, so that both also run in a unit test without Ray. Token ids travel
between them; embeddings do not: the actor writes its shard to storage and returns a summary row. One
actor serves every encoder of a run, one after the other: importing torch, which is most of the start-up,
is paid once a process.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from isoformer.embeddings.encode import EncodedShard, TokenBudget, encode_shard
from isoformer.embeddings.plan import ShardWork
from isoformer.embeddings.profile import hardware
from isoformer.embeddings.shard_file import ShardHeader
from isoformer.embeddings.shard_sequences import TokenizedShard, TranscriptsSource, tokenise
from isoformer.embeddings.store import ShardEntry, write_shard
from isoformer.encoders.registry import EncoderChoice, load_encoder
from isoformer.encoders.spec import Encoder
from isoformer.storage import open_storage


@dataclass(frozen=True)
class WorkerSettings:
    """What an actor is told once."""

    uri: str
    choices: Sequence[EncoderChoice]
    device: str
    dtype: str
    token_budget: int
    threads: int


@dataclass(frozen=True)
class ShardSummary:
    """What an actor says of a shard that it has written. `entries`: dataset key → manifest entry."""

    encoder: int
    shard: int
    entries: dict[str, ShardEntry]
    sequences: int
    tokens: int
    quarantined: dict[str, int]
    started_at: float
    encode_seconds: float
    write_seconds: float
    token_budget: int
    budget_halvings: int
    hardware: str
    worker: str


def work_table(work: ShardWork) -> pa.Table:
    """One row that says what is to be done."""
    return pa.table({"work": [json.dumps(asdict(work))]})


def tokenise_work(table: pa.Table, source: TranscriptsSource, choices: Sequence[EncoderChoice]) -> pa.Table:
    """The row, with its shard's distinct sequences as token ids laid end to end."""
    work = _work(table)
    shard = tokenise(source, work.shard, choices[work.encoder])
    columns = {
        "work": table["work"].combine_chunks(),
        "digests": pa.array([shard.digests], pa.list_(pa.string())),
        "token_ids": pa.array([shard.token_ids.tobytes()], pa.large_binary()),
        "offsets": pa.array([shard.offsets.tobytes()], pa.large_binary()),
        "notes": pa.array([json.dumps([shard.quarantined, shard.counts])]),
    }
    return pa.table(columns)


def summary_of(text: str) -> ShardSummary:
    """A summary from the JSON that an actor returned."""
    return ShardSummary(**json.loads(text))


class EncodeActor:
    """Holds one encoder at a time, encodes under a lock, and writes outside it: the device does not wait."""

    def __init__(self, settings: WorkerSettings) -> None:
        import torch

        torch.set_num_threads(settings.threads)
        self._settings = settings
        self._storage = open_storage(settings.uri)
        self._lock = threading.Lock()
        self._loaded: tuple[int, Encoder, TokenBudget] | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        work, shard = _work(table), _shard(table)
        with self._lock:
            started_at, started = time.time(), time.perf_counter()
            encoder, budget = self._encoder(work.encoder)
            resolutions = [header.resolution for header in work.missing]
            encoded = encode_shard(encoder, shard, resolutions, self._settings.dtype, budget)
            tokens_left, halvings = budget.tokens, budget.halvings
            encode_seconds = time.perf_counter() - started
        started = time.perf_counter()
        entries = self._write(work, shard, encoded)
        summary = ShardSummary(
            encoder=work.encoder,
            shard=work.shard,
            entries=entries,
            sequences=len(shard.digests),
            tokens=len(shard.token_ids),
            quarantined=next(iter(entries.values()))["quarantined"],
            started_at=started_at,
            encode_seconds=encode_seconds,
            write_seconds=time.perf_counter() - started,
            token_budget=tokens_left,
            budget_halvings=halvings,
            hardware=hardware(self._settings.device),
            worker=f"{socket.gethostname()}:{os.getpid()}",
        )
        return pa.table({"summary": [json.dumps(asdict(summary))]})

    def _encoder(self, index: int) -> tuple[Encoder, TokenBudget]:
        import torch

        torch.set_num_threads(self._settings.threads)  # threads of a pool have a count each
        if self._loaded is None or self._loaded[0] != index:
            self._loaded = None  # gives the memory back before the next one is loaded
            encoder = load_encoder(self._settings.choices[index], self._settings.device)
            self._loaded = (index, encoder, TokenBudget(self._settings.token_budget))
        return self._loaded[1], self._loaded[2]

    def _write(self, work: ShardWork, shard: TokenizedShard, encoded: EncodedShard) -> dict[str, ShardEntry]:
        return {
            header.key: write_shard(
                self._storage, header, encoded.rows[header.resolution], encoded.quarantined, shard.counts
            )
            for header in work.missing
        }


def _work(table: pa.Table) -> ShardWork:
    data = json.loads(table["work"][0].as_py())
    return ShardWork(**{**data, "missing": tuple(ShardHeader(**header) for header in data["missing"])})


def _shard(table: pa.Table) -> TokenizedShard:
    quarantined, counts = json.loads(table["notes"][0].as_py())
    return TokenizedShard(
        digests=table["digests"][0].as_py(),
        token_ids=np.frombuffer(table["token_ids"][0].as_buffer(), np.int32),
        offsets=np.frombuffer(table["offsets"][0].as_buffer(), np.int64),
        quarantined=quarantined,
        counts=counts,
    )
