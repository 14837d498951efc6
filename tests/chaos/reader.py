"""A reader that looks at a root all the time while things die: whatever it can see must be whole."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from isoformer.errors import StorageError
from isoformer.storage import Storage

POLL_SECONDS: Final = 0.5
DATA: Final = ("transcripts/", "embeddings/", "reference/")


@contextmanager
def watched(storage: Storage, whole: Mapping[str, str]) -> Iterator[set[str]]:
    """A reader at work for the length of the block, and the keys that it has seen; AssertionError at the end
    where one was not the object that a run in peace makes (`whole`: digests by key).
    """
    seen, problems, is_over = set[str](), list[str](), threading.Event()

    def poll() -> None:
        for key in storage.list():
            if key.startswith(DATA) and key not in seen:
                digest = hashlib.sha256(storage.read_bytes(key)).hexdigest()
                seen.add(key)
                if digest != whole.get(key):
                    problems.append(f"{key}: is not what it should be")

    def poll_all_the_time() -> None:
        while not is_over.wait(POLL_SECONDS):
            try:
                poll()
            except StorageError:
                continue  # the server is down: that is what we are here for

    thread = threading.Thread(target=poll_all_the_time)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()
    poll()
    assert not problems
