"""A reader that looks at a root all the time while runs are killed: whatever it can see must be whole."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow.parquet as pq

from isoformer.storage import open_storage

POLL_SECONDS = 0.02


@dataclass
class Reader:
    """`whole`: the bytes of an undisturbed run. `problems` stays empty where every promise is kept."""

    root: str
    whole: Mapping[str, bytes]
    problems: list[str] = field(default_factory=list)
    polls: int = 0
    seen: dict[str, str] = field(default_factory=dict)

    def poll(self) -> None:
        """Every object that is new or another than it was."""
        storage = open_storage(self.root)
        for key in storage.list("embeddings/"):
            stamp = storage.stamp(key)
            if self.seen.get(key) == stamp:
                continue
            if key in self.seen:
                self.problems.append(f"{key}: was replaced after it had been published")
            data = storage.read_bytes(key)
            self._check(key, data)
            if key.endswith("manifest.json"):
                self._check_listed(key, data)
            self.seen[key] = stamp
        self.polls += 1

    def _check(self, key: str, data: bytes) -> None:
        if key not in self.whole:
            self.problems.append(f"{key}: is no object of an undisturbed run")
        elif data != self.whole[key]:
            self.problems.append(
                f"{key}: {len(data)} bytes, not the {len(self.whole[key])} that it should be"
            )
        elif key.endswith(".parquet"):
            pq.read_metadata(io.BytesIO(data))

    def _check_listed(self, key: str, data: bytes) -> None:
        storage, folder = open_storage(self.root), key.rpartition("/")[0]
        for shard in json.loads(data)["shards"]:
            path = f"{folder}/{shard['name']}"
            if storage.read_bytes(path) != self.whole[path]:
                self.problems.append(f"{key}: lists {path}, which is not whole")


@contextmanager
def watched(root: str, whole: Mapping[str, bytes]) -> Iterator[Reader]:
    """A reader at work for the length of the block; AssertionError at its end where it saw anything wrong."""
    reader, is_over = Reader(root, whole), threading.Event()

    def poll_all_the_time() -> None:
        try:
            while not is_over.wait(POLL_SECONDS):
                reader.poll()
        except Exception as error:
            reader.problems.append(f"the reader failed: {error!r}")

    thread = threading.Thread(target=poll_all_the_time)
    thread.start()
    try:
        yield reader
    finally:
        is_over.set()
        thread.join()
    reader.poll()
    assert not reader.problems
    assert reader.polls > 10
