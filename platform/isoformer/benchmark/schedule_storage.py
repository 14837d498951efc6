"""Requests and planning at sizes that nobody has here: a folder that counts, and repeats one shard.

A read through `open_input` is counted as S3 storage would make it: a HEAD, and a GET for each range.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from isoformer.benchmark.schedule_work import paper_config
from isoformer.config import build
from isoformer.demo_data import demo_paths
from isoformer.embeddings.config import EmbedConfig
from isoformer.embeddings.messages import Orders, ShardSummary, WorkerSettings
from isoformer.embeddings.plan import plan_on
from isoformer.embeddings.store import ShardEntry
from isoformer.embeddings.token_budget import TokenBudget
from isoformer.embeddings.workers import EncodeWorker, tokenise_work
from isoformer.errors import ClusterError
from isoformer.manifest import MANIFEST_KEY
from isoformer.planning import PrepareConfig
from isoformer.s3_requests import RangeReader
from isoformer.schema import shard_name
from isoformer.storage import LocalStorage
from isoformer.transcripts import prepare, run_here

if TYPE_CHECKING:
    import pyarrow as pa

LIST_PAGE: Final = 1000
"""Keys that S3 lists in one request."""
_WINDOW_BASES: Final = 196_608
"""What Enformer reads; a plan counts windows, it does not cut them."""
_FIRST: Final = f"transcripts/{shard_name(0)}"


class CountingStorage(LocalStorage):
    """A folder that counts what S3 would be asked for. Threads may lose a count of a thousand."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.requests: Counter[str] = Counter()

    def read_bytes(self, key: str) -> bytes:
        self.requests["GET"] += 1
        return super().read_bytes(key)

    def write_bytes(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        self.requests["PUT"] += 1
        return super().write_bytes(key, data, if_absent=if_absent)

    def put_file(self, local_path: Path, key: str, *, if_absent: bool = False) -> bool:
        self.requests["PUT"] += 1
        return super().put_file(local_path, key, if_absent=if_absent)

    def open_input(self, key: str) -> pa.NativeFile:
        import pyarrow as pa

        self.requests["HEAD"] += 1
        data = self._path(key).read_bytes()

        def read_range(start: int, end: int) -> bytes:
            self.requests["GET"] += 1
            return data[start:end]

        return pa.PythonFile(RangeReader(len(data), read_range), mode="r")

    def list(self, prefix: str = "") -> list[str]:
        found = super().list(prefix)
        self.requests["LIST"] += max(1, -(-len(found) // LIST_PAGE))
        return found

    def exists(self, key: str) -> bool:
        is_there = super().exists(key)
        self.requests["HEAD"] += 1 if is_there else 2  # S3 storage then asks for the bucket as well
        return is_there

    def size_bytes(self, key: str) -> int:
        self.requests["HEAD"] += 1
        return super().size_bytes(key)


class RepeatingStorage(CountingStorage):
    """A prepared folder whose first shard stands for all of `shards`."""

    def __init__(self, root: Path, shards: int) -> None:
        super().__init__(root)
        self._shards = shards

    def read_bytes(self, key: str) -> bytes:
        if key != MANIFEST_KEY:
            return super().read_bytes(key)
        manifest = json.loads(super().read_bytes(key))
        first = manifest["shards"][0]
        manifest["shards"] = [{**first, "name": shard_name(number)} for number in range(self._shards)]
        manifest["window_bases"] = _WINDOW_BASES
        return json.dumps(manifest).encode()

    def open_input(self, key: str) -> pa.NativeFile:
        import pyarrow as pa

        if not key.startswith("transcripts/shard-"):
            return super().open_input(key)
        self.requests["HEAD"] += 1

        def read_range(start: int, end: int) -> bytes:
            self.requests["GET"] += 1
            return self._first[start:end]

        return pa.PythonFile(RangeReader(len(self._first), read_range), mode="r")

    @cached_property
    def _first(self) -> bytes:
        return (self.root / _FIRST).read_bytes()


@dataclass(frozen=True)
class Requests:
    """S3 requests by kind: of the driver's plan and of the workers, for each shard of one encoder."""

    planning: Mapping[str, float]
    resuming: Mapping[str, float]
    tokenising: Mapping[str, float]
    encoding: Mapping[str, float]

    def of_a_run(self, shards: int, encoders: int) -> dict[str, int]:
        """A first run over all of them; the manifests and the profile are a handful more."""
        kinds = sorted({*self.planning, *self.tokenising, *self.encoding})
        return {
            kind: round(
                shards * self.planning.get(kind, 0)
                + shards * encoders * (self.tokenising.get(kind, 0) + self.encoding.get(kind, 0))
            )
            for kind in kinds
        }


def prepared_sample(folder: Path, shards: int = 1) -> Path:
    """The shipped transcripts under a root of their own."""
    prepare(build(PrepareConfig, {**demo_paths(), "shards": shards}), str(folder), run_shards=run_here)
    return folder


def count_requests(root: Path) -> tuple[Requests, ShardEntry]:
    """What plan, task and worker really ask for: the three fixed transforms on a prepared root.

    Also one of the manifest's entries.
    """
    storage, config = CountingStorage(root), EmbedConfig()
    planned = plan_on(storage, config, str(root))
    planning = _taken(storage, planned.shards)
    settings = WorkerSettings(storage, planned.passes, "cpu", "f16", TokenBudget(2048), 1)
    tokens = [tokenise_work(item, planned.source, planned.passes) for item in planned.work]
    tokenising = _taken(storage, len(tokens))
    worker = EncodeWorker(settings)
    entries: list[ShardEntry] = []
    for item, (met, shard) in zip(planned.work, tokens, strict=True):
        summary = worker.encode(item, shard, Orders())
        if met is not None or not isinstance(summary, ShardSummary):
            raise ClusterError(f"benchmark schedule: shard {item.name} of the sample was not encoded: {met}")
        entries += summary.entries.values()
    encoding = _taken(storage, len(tokens))
    plan_on(storage, config, str(root))
    return Requests(planning, _taken(storage, planned.shards), tokenising, encoding), entries[0]


@dataclass(frozen=True)
class Planned:
    """What planning so many shards took: processor seconds, and what the plan holds while it is there."""

    shards: int
    sequences: int
    cpu_seconds: float
    bytes_held: int
    peak_bytes: int


def measure_planning(root: Path, shards: int) -> Planned:
    """Really plan so many shards with the paper's encoders; in a process of its own, for its memory."""
    storage = RepeatingStorage(root, shards)
    before_bytes, before_cpu = _resident_bytes(), time.process_time()
    planned = plan_on(storage, paper_config(), str(root))
    cpu_seconds = time.process_time() - before_cpu
    return Planned(
        shards,
        sum(encoder.sequences for encoder in planned.encoders),
        cpu_seconds,
        _resident_bytes() - before_bytes,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
    )


def _taken(storage: CountingStorage, shards: int) -> dict[str, float]:
    """A shard, since the last time."""
    counted = {kind: round(count / shards, 2) for kind, count in sorted(storage.requests.items())}
    storage.requests.clear()
    return counted


def _resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    print(json.dumps(measure_planning(Path(sys.argv[1]), int(sys.argv[2])).__dict__))
