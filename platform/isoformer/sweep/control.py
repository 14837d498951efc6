"""Pause, stop or cancel a sweep that runs somewhere else: a request under its root, which its driver sees.

pause   running trials end at their next epoch and stay open; `--resume` goes on with each from its checkpoint
stop    no further trial starts; those that run go on to their ends, then the sweep closes
cancel  running trials end at their next epoch and count as failed; the sweep closes with what it has
"""

from __future__ import annotations

import json
import time
from typing import Any, Final, Literal, cast, get_args

from isoformer.documents import stored_mapping
from isoformer.errors import StorageError
from isoformer.storage import Storage

Request = Literal["pause", "stop", "cancel"]
LOOK_EVERY_SECONDS: Final = 1.0
_REQUEST_FILE: Final = "request.json"


def ask_for(storage: Storage, study: str, request: Request) -> None:
    """Leave a request for the study's driver. StorageError where there is no such study."""
    if not storage.exists(f"studies/{study}/driver.json"):
        raise StorageError(f"{storage.uri}/studies/{study}: no sweep of this name was begun under this root")
    storage.write_bytes(_key(study), json.dumps({"request": request, "at": time.time()}).encode())


class Control:
    """The driver's side: `request` is what was asked for last, looked up at most once a second."""

    def __init__(self, storage: Storage, study: str) -> None:
        self._storage, self._study = storage, study
        self._looked = -LOOK_EVERY_SECONDS
        self._request: Request | None = None

    def begin(self, about: dict[str, Any]) -> None:
        """Forget what an earlier driver was asked, and say that one is here."""
        self._storage.delete(_key(self._study))
        self._storage.write_bytes(f"studies/{self._study}/driver.json", json.dumps(about).encode())

    @property
    def request(self) -> Request | None:
        if time.monotonic() - self._looked >= LOOK_EVERY_SECONDS:
            self._looked = time.monotonic()
            self._request = self._read() or self._request
        return self._request

    def _read(self) -> Request | None:
        try:
            if not self._storage.exists(_key(self._study)):
                return None
            found = stored_mapping(self._storage, _key(self._study), {"request": str})["request"]
        except StorageError:  # not now, or not one: asked again in a second
            return None
        return cast(Request, found) if found in get_args(Request) else None


def _key(study: str) -> str:
    return f"studies/{study}/{_REQUEST_FILE}"
