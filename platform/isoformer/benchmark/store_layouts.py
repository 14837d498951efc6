"""Ways to lay out (positions, width) arrays in a file: what `isoformer benchmark store` lets run.

A layout writes rows in their given order, reads them all, and fetches one by its digest: it finds the digest
in the small columns, then reads the row group that holds it. Written in groups, as the store's writer does.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from isoformer.benchmark.store_columns import LARGE_BINARY, Column, Values

# L positions of one sequence, D width, N values of a row group laid end to end

Rows = Mapping[str, Values]
Fetch = Callable[[str], Values]
MEBIBYTE: Final = 1 << 20


class Layout(Protocol):
    """How a file is written and read. An array that is read does not depend on the file any more."""

    def write(self, path: Path, rows: Rows) -> None: ...

    def read(self, path: Path) -> Iterator[tuple[str, Values]]:
        """(digest, (positions, width) array) of every row."""
        ...

    def open(self, path: Path) -> Any:
        """A context manager: fetch an array by its digest from a file whose digests have been read."""
        ...


@dataclass(frozen=True)
class Parquet:
    """A Parquet file with the columns digest, positions (or position) and embedding."""

    column: Column
    width: int
    row_group_mib: int = 16
    compression: str = "none"
    level: int | None = None
    byte_stream_split: bool = False
    checksums: bool = True

    def write(self, path: Path, rows: Rows) -> None:
        writer = None
        for digests in row_groups(rows, self.row_group_mib * MEBIBYTE):
            table = self._table(digests, [rows[digest] for digest in digests])
            writer = writer or pq.ParquetWriter(path, table.schema, **self._settings())
            writer.write_table(table, row_group_size=len(table))
        if writer is not None:
            writer.close()

    def read(self, path: Path) -> Iterator[tuple[str, Values]]:
        with self._file(path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, use_threads=False)
                digests, positions = self._sequences(table)
                values_N = self.column.flat(_one_chunk(table["embedding"]))
                yield from zip(digests, _cut(values_N, positions, self.width), strict=True)

    @contextmanager
    def open(self, path: Path) -> Iterator[Fetch]:
        with self._file(path) as file:
            places = self._places(file)

            def fetch(digest: str) -> Values:
                group, row, count = places[digest]
                column = file.read_row_group(group, columns=["embedding"], use_threads=False)["embedding"]
                values_N = self.column.flat(_one_chunk(column).slice(row, count))
                return values_N.reshape(-1, self.width)

            yield fetch

    def _places(self, file: pq.ParquetFile) -> dict[str, tuple[int, int, int]]:
        """Digest → row group, its first row there, and how many rows it has."""
        small = file.read(columns=["digest", "positions"], use_threads=False)
        places, first = {}, 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            digests, positions = self._sequences(small.slice(first, count))
            rows = positions if self.column.a_position else np.ones_like(positions)
            for digest, row, of_it in zip(digests, np.cumsum(rows) - rows, rows, strict=True):
                places[digest] = (group, int(row), int(of_it))
            first += count
        return places

    def _sequences(self, table: pa.Table) -> tuple[list[str], NDArray[np.int64]]:
        """The digests, and how many positions each has."""
        positions = table["positions"].to_numpy().astype(np.int64)
        if not self.column.a_position:
            return table["digest"].to_pylist(), positions
        starts = np.flatnonzero(positions == 0)
        return table["digest"].take(starts).to_pylist(), np.diff(np.append(starts, len(table)))

    def _table(self, digests: list[str], arrays: list[Values]) -> pa.Table:
        counts = np.array([len(values_LD) for values_LD in arrays], np.int64)
        embedding = self.column.build(np.concatenate(arrays).reshape(-1), counts, self.width)
        names, positions = pa.array(digests, pa.string()), counts
        if self.column.a_position:
            names = pa.DictionaryArray.from_arrays(
                np.repeat(np.arange(len(digests), dtype=np.int32), counts), names
            )
            positions = np.concatenate([np.arange(count) for count in counts])
        return pa.table(
            {"digest": names, "positions": pa.array(positions, pa.int32()), "embedding": embedding}
        )

    def _settings(self) -> dict[str, Any]:
        return {
            "version": "2.6",
            "compression": self.compression,
            "compression_level": self.level,
            "use_dictionary": ["digest"] if self.column.a_position else False,
            "use_byte_stream_split": [self.column.leaf] if self.byte_stream_split else False,
            "write_statistics": ["digest", "positions"],
            "write_page_checksum": self.checksums,
        }

    @contextmanager
    def _file(self, path: Path) -> Iterator[pq.ParquetFile]:
        with (
            pa.memory_map(str(path), "r") as source,
            pq.ParquetFile(source, page_checksum_verification=self.checksums) as file,
        ):
            yield file


@dataclass(frozen=True)
class BytesObjects(Parquet):
    """Written from one `bytes` a sequence and read scalar by scalar, as the first store did."""

    def _table(self, digests: list[str], arrays: list[Values]) -> pa.Table:
        return pa.table(
            {
                "digest": pa.array(digests, pa.string()),
                "positions": pa.array([len(values_LD) for values_LD in arrays], pa.int32()),
                "embedding": pa.array([values_LD.tobytes() for values_LD in arrays], pa.large_binary()),
            }
        )

    def read(self, path: Path) -> Iterator[tuple[str, Values]]:
        with self._file(path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, use_threads=False)
                digests, positions = table["digest"].to_pylist(), table["positions"].to_pylist()
                for row, (digest, length) in enumerate(zip(digests, positions, strict=True)):
                    buffer = table["embedding"][row].as_buffer()
                    yield digest, np.frombuffer(buffer, np.float16).reshape(length, self.width)


@dataclass(frozen=True)
class ArrowFile:
    """Arrow's own file format, mapped into memory; an array is copied out, which is its reading."""

    width: int
    row_group_mib: int = 16

    def write(self, path: Path, rows: Rows) -> None:
        parquet = Parquet(LARGE_BINARY, self.width)
        writer = None
        for digests in row_groups(rows, self.row_group_mib * MEBIBYTE):
            table = parquet._table(digests, [rows[digest] for digest in digests])
            writer = writer or pa.ipc.new_file(str(path), table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()

    def read(self, path: Path) -> Iterator[tuple[str, Values]]:
        with self.open(path) as fetch, pa.memory_map(str(path), "r") as source:
            for digest in pa.ipc.open_file(source).read_all()["digest"].to_pylist():
                yield digest, fetch(digest)

    @contextmanager
    def open(self, path: Path) -> Iterator[Fetch]:
        with pa.memory_map(str(path), "r") as source:
            table = pa.ipc.open_file(source).read_all()
            places = {digest: row for row, digest in enumerate(table["digest"].to_pylist())}

            def fetch(digest: str) -> Values:
                buffer = table["embedding"][places[digest]].as_buffer()
                return np.frombuffer(buffer, np.float16).reshape(-1, self.width).copy()

            yield fetch


class NumpyZip:
    """`numpy.savez`: a zip of .npy files, not compressed, each with a checksum."""

    def write(self, path: Path, rows: Rows) -> None:
        with path.open("wb") as out, zipfile.ZipFile(out, "w") as archive:
            for digest, values_LD in rows.items():
                with archive.open(f"{digest}.npy", "w") as member:
                    np.lib.format.write_array(member, values_LD)

    def read(self, path: Path) -> Iterator[tuple[str, Values]]:
        with np.load(path) as archive:
            yield from archive.items()

    @contextmanager
    def open(self, path: Path) -> Iterator[Fetch]:
        with np.load(path) as archive:
            yield archive.__getitem__


class SafeTensors:
    """One safetensors file, a tensor a sequence; no checksums."""

    def write(self, path: Path, rows: Rows) -> None:
        save_file(dict(rows), path)

    def read(self, path: Path) -> Iterator[tuple[str, Values]]:
        yield from load_file(path).items()

    @contextmanager
    def open(self, path: Path) -> Iterator[Fetch]:
        with safe_open(path, framework="numpy") as file:
            yield file.get_tensor


def row_groups(rows: Rows, group_bytes: int) -> Iterator[list[str]]:
    """Digests in their order, cut where a group reaches so many bytes."""
    group: list[str] = []
    size = 0
    for digest, values_LD in rows.items():
        group.append(digest)
        size += values_LD.nbytes
        if size >= group_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _cut(values_N: Values, positions: NDArray[np.int64], width: int) -> Iterator[Values]:
    values_PD = values_N.reshape(-1, width)
    ends = np.cumsum(positions)
    for start, stop in zip(ends - positions, ends, strict=True):
        yield values_PD[start:stop]
