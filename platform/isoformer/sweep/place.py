"""The study's folder and database: found, held by one driver, kept on the storage while the sweep goes on.

    <root>/studies/<study>/study.db          the Optuna study, unless `sweep.storage` names a server
                           checkpoints/…     of trials that run
                           trials.json, best.yaml, finals.json, report.html

Under an s3:// root the database is worked on in a local folder; after every trial that ends a whole copy is
put under the root, so that a node that is lost costs no finished trial.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from isoformer.config import without_password
from isoformer.errors import StorageError
from isoformer.storage import Storage
from isoformer.sweep.config import SweepConfig
from isoformer.sweep.database import (
    answering,
    file_of,
    held_folder,
    is_file,
    only_driver,
    open_storage_at,
    snapshot,
)
from isoformer.tracking import TrackingConfig, local_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyPlace:
    """A study's local folder, the URL of its database, and the copies kept under a bucket root.

    `require_held` raises StorageError where the study is not this driver's any more.
    """

    folder: Path
    url: str
    copies: Copies | None
    require_held: Callable[[], None]

    @property
    def shown_url(self) -> str:
        """Without a password."""
        return without_password(self.url)

    def keep_copy(self) -> None:
        """Have a copy put under the root, where the database is not there itself."""
        if self.copies is not None:
            self.copies.ask()


@contextmanager
def study_place(
    storage: Storage, root: str, config: SweepConfig, tracking: TrackingConfig, *, resume: bool
) -> Iterator[StudyPlace]:
    """Hold the study for the length of a block. StorageError where it exists and `resume` is false, or where
    another process works on it.
    """
    local = local_path(root)
    folder = (local or tracking.local_folder) / "studies" / config.study
    url = config.storage or f"sqlite:///{folder / 'study.db'}"
    with held_folder(folder):
        is_copied = local is None and config.storage is None
        if is_file(url):
            _require_database(storage, config.study, file_of(url), is_copied=is_copied, resume=resume)
        database = open_storage_at(url)
        with answering(url):
            names = [study.study_name for study in database.get_all_studies()]
        if config.study in names and not resume:
            raise _exists(f"study {config.study!r} at {without_password(url)}")
        with only_driver(database, url, config.study) as require_held:
            if not is_copied:
                yield StudyPlace(folder, url, None, require_held)
                return
            copies = Copies(storage, f"studies/{config.study}/study.db", file_of(url))
            try:
                yield StudyPlace(folder, url, copies, require_held)
            finally:
                copies.close()


def _require_database(storage: Storage, name: str, file: Path, *, is_copied: bool, resume: bool) -> None:
    key = f"studies/{name}/study.db"
    if file.exists() or (is_copied and storage.exists(key)):
        if not resume:
            raise _exists(str(file) if file.exists() else f"{storage.uri}/{key}")
        if not file.exists():
            storage.download(key, file)
    file.parent.mkdir(parents=True, exist_ok=True)


def _exists(what: str) -> StorageError:
    return StorageError(f"{what} exists: go on with it (--resume), or take another study name")


class Copies:
    """Puts whole copies of a SQLite file on the storage, from a thread; several requests may share one."""

    def __init__(self, storage: Storage, key: str, database: Path) -> None:
        self._storage, self._key, self._database = storage, key, database
        self._asked, self._closing = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="isoformer-study-copies", daemon=True)
        self._thread.start()

    def ask(self) -> None:
        self._asked.set()

    def close(self) -> None:
        """Put the last copy. StorageError where that fails."""
        self._closing = True
        self._asked.set()
        self._thread.join()
        self._put()

    def _run(self) -> None:
        while not self._closing:
            self._asked.wait()
            self._asked.clear()
            if not self._closing:
                try:
                    self._put()
                except StorageError as error:
                    logger.warning("the study's copy is not up to date, the next one will be: %s", error)

    def _put(self) -> None:
        with tempfile.TemporaryDirectory(prefix="isoformer-study-") as work:
            self._storage.put_file(snapshot(self._database, Path(work, "study.db")), self._key)
