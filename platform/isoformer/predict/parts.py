"""Predict a large input into a folder of part files, in parallel and so that it can go on after a kill.

    <output>/part-00000.parquet …   so many rows of the input each, always the same ones
    <output>/_manifest.json         written last: parts, counts, model; readers of Parquet folders skip it

The driver reads the input and hands each part's rows to one of a fixed pool of workers, each of which holds
the model and writes its part itself. A part's footer carries a digest over the model and the rows: a part
that is there with the same digest is not made again, one with another is never overwritten. `PartWorker`
knows no Ray.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from isoformer.errors import ClusterError, FingerprintError, InputError, StorageError
from isoformer.parquet_file import open_parquet
from isoformer.predict.results import PredictCounts, predicted_tables, read_metadata, result_schema
from isoformer.predict.rows import PredictRow, batches
from isoformer.predict.run import model_metadata
from isoformer.sequence_model import SequenceModel
from isoformer.storage import Storage, open_storage

MANIFEST_FILE: Final = "_manifest.json"
MOST_RESTARTS: Final = 3
"""Of one worker, before the run is given up."""
_AHEAD: Final = 2
"""Parts read ahead, a worker: it need not wait for the driver."""


@dataclass(frozen=True)
class PartSettings:
    """What all workers share. `source`: the model's address, which every node can open."""

    source: str
    fingerprint: str
    output: str
    batch_size: int = 32
    device: str = "cpu"
    workers: int = 1
    tracking_uri: str | None = None


@dataclass(frozen=True)
class Part:
    """One part's rows, and what its footer is to say."""

    index: int
    rows: list[PredictRow]
    digest: str

    @property
    def name(self) -> str:
        return part_name(self.index)


@dataclass(frozen=True)
class PartsReport:
    """What there is now; `present` of the parts were there before."""

    counts: PredictCounts
    parts: int
    present: int


Predictor = Callable[[Iterable[Part], PartSettings], Iterator[PredictCounts]]


def predict_parts(
    rows: Iterator[PredictRow],
    settings: PartSettings,
    *,
    rows_per_part: int = 512,
    predictor: Predictor | None = None,
    progress: Callable[[int], None] | None = None,
) -> PartsReport:
    """Predict every row into the part files under `settings.output`; parts that are there are kept.

    Ray must be connected, unless another `predictor` is given (`predict_here` does without). `progress` is
    told how many rows are done. FingerprintError where a part that is there was made from other rows or by
    another model; InputError where the folder holds something else than parts.
    """
    storage = open_storage(settings.output)
    _require_own_folder(storage)
    settings = replace(settings, output=storage.uri)  # workers run in other folders
    present: list[PredictCounts] = []
    indices: list[int] = []

    def missing() -> Iterator[Part]:
        for index, batch in enumerate(batches(rows, rows_per_part)):
            indices.append(index)
            part = Part(index, batch, rows_digest(batch, settings.fingerprint))
            found = _present(storage, part)
            if found is None:
                yield part
            else:
                present.append(found)

    counts = PredictCounts()
    for done in (predictor or predict_on_ray)(missing(), settings):
        counts += done
        if progress is not None:
            progress(counts.rows + sum(one.rows for one in present))
    counts = sum(present, counts)
    counts.require_reconciled()
    _finish(storage, settings, counts, len(indices))
    return PartsReport(counts, len(indices), len(present))


class PartWorker:
    """Holds the model; predicts parts and writes them. `shares_node`: its threads are the node's cores,
    shared among the workers.
    """

    def __init__(self, settings: PartSettings, *, shares_node: bool = False) -> None:
        if shares_node:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // settings.workers))
        self._settings, self._storage = settings, open_storage(settings.output)
        self._model = SequenceModel.open(
            settings.source, device=settings.device, tracking_uri=settings.tracking_uri
        )
        if self._model.fingerprint != settings.fingerprint:
            raise FingerprintError(
                f"{settings.source}: is model {self._model.fingerprint} on this node, but "
                f"{settings.fingerprint} on the driver's: they must see the same files"
            )

    def predict(self, part: Part) -> PredictCounts:
        """Predict, write and verify one part; of two writers of the same part, both are right."""
        metadata = {**model_metadata(self._model), "rows_digest": part.digest}
        schema = result_schema(self._model.target_names, metadata)
        made = predicted_tables(self._model, batches(iter(part.rows), self._settings.batch_size), schema)
        table = pa.concat_tables([schema.empty_table(), *made])
        counts = PredictCounts.of(table)
        counts.require_reconciled()
        metadata["counts"] = asdict(counts)
        table = table.replace_schema_metadata(result_schema(self._model.target_names, metadata).metadata)
        self._storage.write_bytes(part.name, _parquet_bytes(table), if_absent=True)
        found = _present(self._storage, part)
        if found is None:
            raise StorageError(f"{self._storage.uri}/{part.name}: is gone after it was written")
        return found


def predict_here(parts: Iterable[Part], settings: PartSettings) -> Iterator[PredictCounts]:
    """One part after the other, in this process."""
    worker = None
    for part in parts:
        worker = worker or PartWorker(settings)
        yield worker.predict(part)


def predict_on_ray(parts: Iterable[Part], settings: PartSettings) -> Iterator[PredictCounts]:
    """By a fixed pool of actors, started when there is a part to do. One that dies is started anew, and its
    part with it.
    """
    import ray
    from ray.exceptions import RayActorError
    from ray.util import ActorPool

    coming = iter(parts)
    first = next(coming, None)
    if first is None:
        return
    actors = _actors(settings)
    pool: Any = ActorPool(actors)
    waiting = 0
    try:
        for part in chain([first], coming):
            pool.submit(lambda actor, given: actor.predict.remote(given), part)
            waiting += 1
            if waiting >= settings.workers * _AHEAD:
                yield pool.get_next_unordered()
                waiting -= 1
        while pool.has_next():
            yield pool.get_next_unordered()
    except RayActorError as error:
        raise ClusterError(
            f"a worker died too often ({_last_line(str(error))}); what is done stays: run it again"
        ) from error
    finally:
        for actor in actors:
            ray.kill(actor)


def _actors(settings: PartSettings) -> list[Any]:
    import ray

    options = {"num_cpus": 1, "num_gpus": int(settings.device != "cpu")}
    remote: Any = ray.remote(PartWorker)
    worker = remote.options(**options, max_restarts=MOST_RESTARTS, max_task_retries=MOST_RESTARTS)
    return [worker.remote(settings, shares_node=True) for _ in range(settings.workers)]


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason given")


def part_name(index: int) -> str:
    """`part-00000.parquet`."""
    return f"part-{index:05d}.parquet"


def rows_digest(rows: Sequence[PredictRow], model: str) -> str:
    """One digest over a model and the rows that it is to predict."""
    digest = hashlib.blake2b(model.encode(), digest_size=16)
    for row in rows:
        digest.update(json.dumps(asdict(row), sort_keys=True).encode())
    return digest.hexdigest()


def _require_own_folder(storage: Storage) -> None:
    foreign = [key for key in storage.list("") if key != MANIFEST_FILE and not key.startswith("part-")]
    if foreign:
        raise InputError(
            f"the folder holds something else ({foreign[0]})",
            field="output",
            value=storage.uri,
            allowed="an empty or new folder, or one with parts of the same input",
        )


def _present(storage: Storage, part: Part) -> PredictCounts | None:
    """The counts of a part that is there already. FingerprintError where it is another's."""
    if not storage.exists(part.name):
        return None
    uri = f"{storage.uri}/{part.name}"
    try:
        with storage.open_input(part.name) as file:
            found = read_metadata(open_parquet(file).schema_arrow)
    except pa.ArrowInvalid as error:
        raise StorageError(f"{uri}: cannot be read as Parquet ({error})") from None
    if found.get("rows_digest") != part.digest:
        raise FingerprintError(
            f"{uri}: was made from other rows or by another model ({found.get('rows_digest')}, here "
            f"{part.digest}); nothing was overwritten: give another folder, or remove this one"
        )
    return PredictCounts(**found["counts"])


def _finish(storage: Storage, settings: PartSettings, counts: PredictCounts, parts: int) -> None:
    """Write the manifest. FingerprintError where parts of a larger input lie in the folder."""
    names = [part_name(index) for index in range(parts)]
    surplus = [key for key in storage.list("part-") if key not in names]
    if surplus:
        raise FingerprintError(f"{storage.uri}/{surplus[0]}: is not of this input, which has {parts} parts")
    stated = {"model": settings.fingerprint, "source": settings.source, "parts": names, **asdict(counts)}
    storage.write_bytes(MANIFEST_FILE, json.dumps(stated, indent=1).encode())


def _parquet_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
