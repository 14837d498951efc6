"""Workers that meet what real ones may: a sequence that kills, hangs or breaks them, full memory, storage."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isoformer.embeddings.plan import ShardWork
from isoformer.embeddings.workers import EncodeWorker
from isoformer.encoders.spec import Encoded, Encoder, Packed
from isoformer.errors import StorageError


class Wrapped:
    """An encoder that does something else first."""

    def __init__(self, encoder: Encoder, harm: Any) -> None:
        self.spec, self.weights_digest = encoder.spec, encoder.weights_digest
        self._encoder, self._harm = encoder, harm

    def encode(self, packed: Packed) -> Encoded:
        self._harm(packed)
        return self._encoder.encode(packed)


def failing(base: type[EncodeWorker], poison_tokens: int | None = None) -> type[EncodeWorker]:
    """A worker that fails on sequences of so many tokens (null: on every one); it bears a real one's name."""
    import ray  # not before the session has set its environment

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[attr-defined]
    return type("EncodeWorker", (base,), {"poison_tokens": poison_tokens})


class FailingWorker(EncodeWorker):
    poison_tokens: int | None

    def is_poisoned(self, packed: Packed) -> bool:
        return self.poison_tokens is None or self.poison_tokens in np.diff(packed.offsets)

    def _encoder(self, work: ShardWork) -> Any:
        seconds, encoder = super()._encoder(work)
        return seconds, Wrapped(encoder, self.harm)

    def harm(self, packed: Packed) -> None:
        raise NotImplementedError


class Crashing(FailingWorker):
    def harm(self, packed: Packed) -> None:
        if self.is_poisoned(packed):
            os._exit(1)


class Hanging(FailingWorker):
    def harm(self, packed: Packed) -> None:
        if self.is_poisoned(packed):
            time.sleep(1000)


class Raising(FailingWorker):
    def harm(self, packed: Packed) -> None:
        if self.is_poisoned(packed):
            raise RuntimeError("CUDA error: device-side assert triggered")


class ShortOfMemory(FailingWorker):
    def harm(self, packed: Packed) -> None:
        if len(packed.token_ids) > 1000 and len(packed.offsets) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")


class StopsOnce(FailingWorker):
    """The first worker of a root stands still, all of its threads; who it was stays beside the root."""

    def harm(self, packed: Packed) -> None:
        stopped = Path(f"{self._settings.storage.uri}.stopped")
        if not stopped.exists():
            stopped.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)


class ThrottledOnce(EncodeWorker):
    """The first write of each process to a shard's place is refused."""

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self._refused: set[str] = set()
        self._put = settings.storage.put_file
        settings.storage.put_file = self._refuse_first

    def _refuse_first(self, local: Path, key: str, *, if_absent: bool = False) -> bool:
        if key not in self._refused:
            self._refused.add(key)
            raise StorageError(f"{key}: cannot be written: SlowDown")
        return bool(self._put(local, key, if_absent=if_absent))
