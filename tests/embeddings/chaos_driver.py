"""A run that takes long enough to be killed at any point of: `python chaos_driver.py ROOT NODES`.

Encoders, files and processes are the real ones, only slower: tokenising, every local write and every manifest
waits a moment, a pack CHAOS_PACK_SECONDS. Prints a line of progress now and then, at last the report.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from embeddings import driver
from isoformer import storage
from isoformer.embeddings import pool, workers
from isoformer.embeddings.config import EmbedConfig, EncoderJob
from isoformer.embeddings.messages import WorkerSettings
from isoformer.embeddings.pipeline import EmbedProgress
from isoformer.embeddings.plan import ShardWork

CONFIG = EmbedConfig(
    encoders=tuple(
        EncoderJob(name=name, resolution=resolution)
        for name, resolutions in {"esm2-tiny": ("pooled", "tokens"), "composition-rna": ("bins:4",)}.items()
        for resolution in resolutions
    ),
    actors=2,
    threads_per_actor=1,
    token_budget=1024,
    stall_seconds=60,
)
TOKENISE_SECONDS, WRITE_SECONDS = 0.3, 0.1
PACK_SECONDS = "CHAOS_PACK_SECONDS"


class EncodeWorker(workers.EncodeWorker):
    def __init__(self, settings: WorkerSettings) -> None:
        super().__init__(settings)
        write_slowly()

    def _stop_if_abandoned(self, work: ShardWork) -> None:
        time.sleep(float(os.environ[PACK_SECONDS]))  # it is asked before every pack
        super()._stop_if_abandoned(work)


def tokenise_work(*arguments: Any) -> Any:
    time.sleep(TOKENISE_SECONDS)
    return workers.tokenise_work(*arguments)


def write_slowly() -> None:
    """A local temporary file stands half written for a moment."""
    write = storage._write_chunks

    def slow_write(out: Any, chunks: Any) -> None:
        for data in chunks:
            write(out, [data[: len(data) // 2]])
            out.flush()
            time.sleep(WRITE_SECONDS)
            write(out, [data[len(data) // 2 :]])

    storage._write_chunks = slow_write
    storage._write_all = lambda out, data: slow_write(out, [data])


def tell(progress: EmbedProgress) -> None:
    told = {name: getattr(progress, name) for name in ("shards_done", "shards", "tokens_done")}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    write_slowly()
    pool.EncodeWorker = EncodeWorker
    pool.tokenise_work = tokenise_work
    driver.run(CONFIG, sys.argv[1], int(sys.argv[2]), tell)
