"""Where a study's database is, who may write to it, and how its address is shown.

A study lies in `study.db` beside its other files, or in PostgreSQL or MySQL by URL. One driver works on a
study at a time: held off by a lock on the folder and, in a server, by a lock of the connection, which the
server gives back when the driver is gone, however it went.
"""

from __future__ import annotations

import logging
import re
import sqlite3
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from isoformer.config import without_password
from isoformer.errors import StorageError

if TYPE_CHECKING:
    import optuna

BUSY_SECONDS: Final = 30
LOCKS: Final = {
    "postgresql": "SELECT pg_try_advisory_lock(:key)",
    "mysql": "SELECT GET_LOCK(CONCAT('isoformer-', :key), 0)",
}


def open_storage_at(url: str) -> optuna.storages.RDBStorage:
    """Optuna's storage, its tables made where there are none. StorageError where it cannot be reached."""
    import optuna
    import sqlalchemy.exc

    _quiet(optuna)
    connect: dict[str, Any] = {"timeout": BUSY_SECONDS} if is_file(url) else {}
    arguments: dict[str, Any] = {"connect_args": connect} if is_file(url) else {"pool_pre_ping": True}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.storages.RDBStorage(url, engine_kwargs=arguments)
    except ImportError as error:
        raise StorageError(
            f"{without_password(url)}: {_first_line(error)}; "
            "install isoformer[databases], which has the drivers"
        ) from None
    except (sqlalchemy.exc.SQLAlchemyError, RuntimeError) as error:  # Optuna wraps its version check
        raise StorageError(f"{without_password(url)}: {_without_that_of(_first_line(error), url)}") from None


@contextmanager
def answering(url: str) -> Iterator[None]:
    """Any error of the database within the block as a StorageError that says how to go on."""
    import optuna
    import sqlalchemy.exc

    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        reason = _without_that_of(_first_line(cause if isinstance(cause, Exception) else error), url)
        raise StorageError(
            f"{without_password(url)}: the study's database has failed ({reason}); "
            "nothing that it holds is lost: when it answers again, go on with --resume"
        ) from None


@contextmanager
def only_driver(storage: optuna.storages.RDBStorage, url: str, study: str) -> Iterator[Callable[[], None]]:
    """Keep other drivers off the study for the length of a block. StorageError where one works on it.

    A server's lock goes with its connection, also where the server was gone for a moment: what the block is
    given raises StorageError from then on, and must be asked before every write. A file's lock is the
    folder's; see `held_folder`.
    """
    import sqlalchemy as sa

    question = LOCKS.get(storage.engine.dialect.name)
    if question is None:
        yield lambda: None
        return
    key: int | str = zlib.crc32(f"isoformer {study}".encode())
    with ExitStack() as stack:
        with answering(url):
            connection = stack.enter_context(storage.engine.connect())
            is_ours = connection.execute(sa.text(question), {"key": key}).scalar()
            connection.commit()
        if not is_ours:
            raise StorageError(f"{without_password(url)}: another process works on study {study!r}")

        def require_held() -> None:
            with answering(url):
                if connection.invalidated:  # it would come back, without the lock
                    raise sa.exc.InvalidRequestError("the connection that held the study was lost")
                connection.execute(sa.text("SELECT 1"))
                connection.commit()

        try:
            yield require_held
        finally:
            connection.invalidate()


@contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Keep other drivers off a folder for the length of a block. StorageError where one works in it."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StorageError(f"{folder}: another process works on this study") from None
    try:
        yield
    finally:
        lock.release()


def is_file(url: str) -> bool:
    """Whether the database is a SQLite file."""
    return url.startswith("sqlite:///")


def file_of(url: str) -> Path:
    """The file of a SQLite URL."""
    return Path(url.removeprefix("sqlite:///"))


def snapshot(database: Path, to: Path) -> Path:
    """A copy of a SQLite file that is whole although the file is being written to."""
    with (
        closing(sqlite3.connect(database, timeout=BUSY_SECONDS)) as source,
        closing(sqlite3.connect(to)) as out,
    ):
        source.backup(out)
    return to


def _without_that_of(text: str, url: str) -> str:
    """A driver's words without the password of the URL, which they may have on its own."""
    found = re.search(r"://[^/@:]*:([^/@]+)@", url)
    return text.replace(found[1], "***") if found else text


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _quiet(optuna_module: Any) -> None:
    optuna_module.logging.set_verbosity(optuna_module.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
