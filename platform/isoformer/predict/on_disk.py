"""Ids and sequences in a temporary SQLite file: matched by id, though they do not fit into memory."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from isoformer.schema import Modality


class OnDisk:
    """Ids and sequences by id, in a file that is gone when the block ends: memory does not grow with them."""

    def __enter__(self) -> OnDisk:
        self._stack = contextlib.ExitStack()
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="isoformer-predict-"))
        self._connection = self._stack.enter_context(
            contextlib.closing(sqlite3.connect(Path(folder, "sequences.db"), isolation_level=None))
        )
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute("PRAGMA journal_mode = OFF")
        for table in ("seen", "dna", "protein"):
            self._connection.execute(f"CREATE TABLE {table} (id TEXT UNIQUE, sequence TEXT)")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def put(self, table: str, identifier: str, sequence: str) -> bool:
        """False where the id is there already."""
        query = f"INSERT OR IGNORE INTO {table} VALUES (?, ?)"
        return self._connection.execute(query, (identifier, sequence)).rowcount == 1

    def get(self, table: str, identifier: str) -> str | None:
        query = f"SELECT sequence FROM {table} WHERE id = ?"
        found = self._connection.execute(query, (identifier,)).fetchone()
        return found[0] if found else None

    def beside(self, identifier: str) -> dict[Modality, str | None]:
        """DNA and protein of an id."""
        return {"dna": self.get("dna", identifier), "protein": self.get("protein", identifier)}

    def unseen(self, table: str) -> Iterator[str]:
        """Ids of the table that no row had yet, in the order in which they came; they count as seen then."""
        last = 0
        query = (
            f"SELECT rowid, id FROM {table} WHERE rowid > ? AND id NOT IN (SELECT id FROM seen) "
            "ORDER BY rowid LIMIT 1"
        )
        while found := self._connection.execute(query, (last,)).fetchone():
            last = int(found[0])
            self.put("seen", found[1], "")
            yield str(found[1])
