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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa

from isoformer import errors
from isoformer.embeddings.encode import EncodedShard, encode_shard
from isoformer.embeddings.plan import ShardWork
from isoformer.embeddings.profile import hardware
from isoformer.embeddings.shard_file import ShardHeader
from isoformer.embeddings.shard_sequences import TokenizedShard, TranscriptsSource, tokenise
from isoformer.embeddings.store import ShardEntry, write_shard
from isoformer.embeddings.token_budget import TokenBudget
from isoformer.encoders.registry import EncoderChoice, load_encoder
from isoformer.encoders.spec import Encoder
from isoformer.errors import IsoformerError
from isoformer.storage import Storage


@dataclass(frozen=True)
class WorkerSettings:
    """What an actor is told once."""

    storage: Storage
    choices: Sequence[EncoderChoice]
    device: str
    dtype: str
    token_budget: TokenBudget
    threads: int


@dataclass(frozen=True)
class ShardSummary:
    """What an actor says of a shard that it has written. `entries`: dataset key → manifest entry."""

    encoder: int
    shard: int
    entries: dict[str, ShardEntry]
    sequences: int
    tokens: int
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
    try:
        shard = tokenise(source, work.shard, choices[work.encoder])
    except IsoformerError as error:
        return _tokenised(table, TokenizedShard.empty(), _told(error))
    return _tokenised(table, shard, None)


def summary_of(row: Mapping[str, str | None]) -> ShardSummary:
    """The summary in an actor's row; where the worker met an error, it is raised here."""
    if row["error"] is not None:
        kind, text = json.loads(row["error"])
        raise getattr(errors, kind)(text)
    return ShardSummary(**json.loads(str(row["summary"])))


class EncodeActor:
    """Holds one encoder at a time, encodes under a lock, and writes outside it: the device does not wait."""

    def __init__(self, settings: WorkerSettings) -> None:
        import torch

        torch.set_num_threads(settings.threads)
        self._settings = settings
        self._lock = threading.Lock()
        self._loaded: tuple[int, Encoder, TokenBudget] | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        error = table["error"][0].as_py()
        if error is not None:
            return _result(None, error)
        try:
            return _result(self._encode_and_write(_work(table), _shard(table)), None)
        except IsoformerError as found:
            return _result(None, _told(found))

    def _encode_and_write(self, work: ShardWork, shard: TokenizedShard) -> ShardSummary:
        with self._lock:
            started_at, started = time.time(), time.perf_counter()
            encoder, budget = self._encoder(work.encoder)
            resolutions = [header.resolution for header in work.missing]
            encoded = encode_shard(encoder, shard, resolutions, self._settings.dtype, budget)
            tokens_left, halvings = budget.tokens, budget.halvings
            encode_seconds = time.perf_counter() - started
        started = time.perf_counter()
        entries = self._write(work, shard, encoded)
        return ShardSummary(
            encoder=work.encoder,
            shard=work.shard,
            entries=entries,
            sequences=len(shard.digests),
            tokens=len(shard.token_ids),
            started_at=started_at,
            encode_seconds=encode_seconds,
            write_seconds=time.perf_counter() - started,
            token_budget=tokens_left,
            budget_halvings=halvings,
            hardware=hardware(self._settings.device),
            worker=f"{socket.gethostname()}:{os.getpid()}",
        )

    def _encoder(self, index: int) -> tuple[Encoder, TokenBudget]:
        import torch

        torch.set_num_threads(self._settings.threads)  # threads of a pool have a count each
        if self._loaded is None or self._loaded[0] != index:
            self._loaded = None  # gives the memory back before the next one is loaded
            encoder = load_encoder(self._settings.choices[index], self._settings.device)
            self._loaded = (index, encoder, replace(self._settings.token_budget))
        return self._loaded[1], self._loaded[2]

    def _write(self, work: ShardWork, shard: TokenizedShard, encoded: EncodedShard) -> dict[str, ShardEntry]:
        return {
            header.key: write_shard(
                self._settings.storage,
                header,
                encoded.rows[header.resolution],
                encoded.quarantined,
                shard.counts,
            )
            for header in work.missing
        }


def _tokenised(table: pa.Table, shard: TokenizedShard, error: str | None) -> pa.Table:
    return pa.table(
        {
            "work": table["work"].combine_chunks(),
            "digests": pa.array([shard.digests], pa.list_(pa.string())),
            "token_ids": pa.array([shard.token_ids.tobytes()], pa.large_binary()),
            "offsets": pa.array([shard.offsets.tobytes()], pa.large_binary()),
            "notes": pa.array([json.dumps([shard.quarantined, shard.counts])]),
            "error": pa.array([error], pa.string()),
        }
    )


def _result(summary: ShardSummary | None, error: str | None) -> pa.Table:
    text = json.dumps(asdict(summary)) if summary else None
    return pa.table({"summary": pa.array([text], pa.string()), "error": pa.array([error], pa.string())})


def _told(error: IsoformerError) -> str:
    """The error as data: raised through Ray, it would arrive as a page of tracebacks without its class."""
    return json.dumps([type(error).__name__, str(error)])


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
