"""The file format of an embedding shard: Parquet with raw rows and a footer that says what they are.

One row a distinct sequence, in the order of encoding: most tokens first, then by digest. The footer holds
key, width, dtype, resolution, a digest over the sequences wanted, counts by reason, the digests that were
quarantined and why, and a digest over the rows. There is no time stamp: the same input makes the same bytes.
`store.py` publishes and reads these files; nothing else knows the format.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from isoformer.embeddings.key import NUMPY_DTYPES
from isoformer.errors import StorageError
from isoformer.parquet_file import open_parquet
from isoformer.schema import EMBEDDINGS_SCHEMA, Modality

# L positions of one sequence, D width

_FOOTER: Final = b"isoformer"
_ROW_GROUP_BYTES: Final = 16 << 20
_GROUPS_WAITING: Final = 2
_PARQUET_SETTINGS: Final[dict[str, Any]] = {
    "version": "2.6",
    "compression": "none",  # zstd saves 8% of float16 states; raw bytes read at memory speed
    "use_dictionary": False,
    "write_statistics": ["digest", "positions"],
    "write_page_checksum": True,
}


@dataclass(frozen=True)
class ShardHeader:
    """What a shard is, before its rows: all of it goes into the footer.

    `sequences_digest` is over the distinct sequences wanted, each named by the digest of its letters.
    """

    key: str
    modality: Modality
    width: int
    dtype: str
    resolution: str
    shard: int
    sequences_digest: str


@dataclass(frozen=True)
class ShardFooter:
    """A header and what was written.

    `quarantined`: sequence without a row → reason. `counts`: letters cropped or masked, by reason.
    """

    header: ShardHeader
    sequences: int
    positions: int
    content_digest: str
    quarantined: dict[str, str]
    counts: dict[str, int]

    def quarantined_by_reason(self) -> dict[str, int]:
        reasons = sorted(self.quarantined.values())
        return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}


class ShardFileWriter:
    """Writes a shard's rows to a local file as they come; a row group is written by another thread.

    Memory holds the rows of the group that is being filled and of two that wait for the disk; more make `add`
    wait. Not thread-safe: one caller.
    """

    def __init__(self, local: Path, header: ShardHeader) -> None:
        self._header = header
        self._writer = pq.ParquetWriter(local, EMBEDDINGS_SCHEMA, **_PARQUET_SETTINGS)
        self._written: deque[Future[None]] = deque()
        self._content = _ContentHash()
        self._group: list[tuple[str, NDArray[Any]]] = []
        self._group_bytes = self._sequences = self._positions = 0

    def add(self, digest: str, values_LD: NDArray[Any]) -> None:
        """The next row. StorageError for an array that is not (positions, width) of the header's dtype."""
        _require_shape(digest, values_LD, self._header)
        self._group.append((digest, values_LD))
        self._group_bytes += values_LD.nbytes
        self._sequences, self._positions = self._sequences + 1, self._positions + len(values_LD)
        if self._group_bytes >= _ROW_GROUP_BYTES:
            self._hand_over()

    def finish(self, quarantined: Mapping[str, str], counts: Mapping[str, int]) -> ShardFooter:
        """Write what is left, then the footer; the file is whole afterwards."""
        if self._group or not self._sequences:
            self._hand_over()
        while self._written:
            self._written.popleft().result()
        reasons = (dict(sorted(quarantined.items())), dict(sorted(counts.items())))
        footer = ShardFooter(
            self._header, self._sequences, self._positions, self._content.hexdigest(), *reasons
        )
        self._writer.add_key_value_metadata({_FOOTER.decode(): json.dumps(asdict(footer), sort_keys=True)})
        self.close()
        return footer

    def close(self) -> None:
        """Write no more and close the file, finished or not."""
        wait([group for group in self._written if not group.cancel()])
        self._written.clear()
        self._writer.close()

    def _hand_over(self) -> None:
        if len(self._written) == _GROUPS_WAITING:
            self._written.popleft().result()
        self._written.append(_writing_thread().submit(self._write, self._group))
        self._group, self._group_bytes = [], 0

    def _write(self, group: list[tuple[str, NDArray[Any]]]) -> None:
        self._writer.write_table(_table(group), row_group_size=max(1, len(group)))
        for digest, values_LD in group:
            self._content.add(digest, values_LD)


@cache
def _writing_thread() -> ThreadPoolExecutor:
    """One of a process: the allocator keeps the pages of every thread that has ever written."""
    return ThreadPoolExecutor(1, "isoformer-write")


def opened(source: pa.NativeFile, uri: str) -> pq.ParquetFile:
    """StorageError where the object is truncated or no Parquet file."""
    try:
        return open_parquet(source, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise StorageError(
            f"{uri}: is not a whole Parquet file; delete it and run embed again: {error}"
        ) from None


def footer_of(file: pq.ParquetFile, uri: str) -> ShardFooter:
    """What a shard says it is. StorageError where it is a file of another kind."""
    text = (file.metadata.metadata or {}).get(_FOOTER)
    if text is None:
        raise StorageError(f"{uri}: is a Parquet file, but its footer says nothing of embeddings")
    try:
        footer = TypeAdapter(ShardFooter).validate_json(text, strict=True)
    except ValueError as error:
        raise StorageError(f"{uri}: its footer is not one of this version: {_first_problem(error)}") from None
    if footer.header.dtype not in NUMPY_DTYPES or footer.header.width < 1:
        found = f"dtype {footer.header.dtype!r} and width {footer.header.width}"
        raise StorageError(f"{uri}: its footer says {found}; allowed: {', '.join(NUMPY_DTYPES)}, at least 1")
    if file.schema_arrow.remove_metadata() != EMBEDDINGS_SCHEMA:
        raise StorageError(f"{uri}: its columns are not {', '.join(EMBEDDINGS_SCHEMA.names)}; embed again")
    return footer


def _first_problem(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def rows_of(file: pq.ParquetFile, header: ShardHeader) -> Iterator[tuple[str, NDArray[Any]]]:
    """(digest, (positions, width) array) row by row; arrays are views of one buffer a row group."""
    for group in range(file.num_row_groups):
        yield from group_rows(file, header, group)


def group_rows(file: pq.ParquetFile, header: ShardHeader, group: int) -> list[tuple[str, NDArray[Any]]]:
    """The rows of one row group."""
    table = file.read_row_group(group, use_threads=False).combine_chunks()
    if any(column.null_count for column in table.columns):
        raise ValueError("a column has nulls")
    if not len(table):
        return []
    column = table["embedding"].chunk(0)
    _, offsets, data = column.buffers()
    starts = np.frombuffer(offsets, np.int64, len(table) + 1, column.offset * 8)
    flat = np.frombuffer(data, np.uint8)
    dtype = NUMPY_DTYPES[header.dtype]
    digests, positions = table["digest"].to_pylist(), table["positions"].to_pylist()
    return [
        (digest, flat[start:end].view(dtype).reshape(length, header.width))
        for digest, length, start, end in zip(digests, positions, starts, starts[1:], strict=False)
    ]


def groups_of_digests(file: pq.ParquetFile) -> dict[str, int]:
    """Digest → the row group that holds it; reads no embedding."""
    return {
        digest: group
        for group in range(file.num_row_groups)
        for digest in file.read_row_group(group, columns=["digest"], use_threads=False)["digest"].to_pylist()
    }


def verify_rows(file: pq.ParquetFile, footer: ShardFooter, uri: str) -> None:
    """Hash every row again. StorageError where a value is not finite, or counts or hash do not hold."""
    content, sequences, positions = _ContentHash(), 0, 0
    with explained(uri):
        for digest, values_LD in rows_of(file, footer.header):
            if not np.isfinite(values_LD).all():
                raise StorageError(f"{uri}: sequence {digest} holds a value that is not finite")
            content.add(digest, values_LD)
            sequences, positions = sequences + 1, positions + len(values_LD)
    found = replace(footer, sequences=sequences, positions=positions, content_digest=content.hexdigest())
    if found != footer:
        raise StorageError(f"{uri}: its rows are {_told(found)}, but its footer says {_told(footer)}")


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """A StorageError for what a damaged file raises while it is read."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StorageError(f"{uri}: cannot be read back: {error}") from None


def _told(footer: ShardFooter) -> str:
    return f"{footer.sequences} sequences, {footer.positions} positions, content {footer.content_digest}"


class _ContentHash:
    """A running digest over rows, in order."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, digest: str, values_LD: NDArray[Any]) -> None:
        self._hash.update(f"{digest} {len(values_LD)}\n".encode())
        self._hash.update(np.ascontiguousarray(values_LD).data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _require_shape(digest: str, values_LD: NDArray[Any], header: ShardHeader) -> None:
    dtype = NUMPY_DTYPES[header.dtype]
    if values_LD.dtype != dtype or values_LD.ndim != 2 or values_LD.shape[1] != header.width:
        raise StorageError(
            f"{header.key}, sequence {digest}: got {values_LD.shape} of {values_LD.dtype}; "
            f"allowed: (positions, {header.width}) of {dtype}"
        )


def _table(group: Sequence[tuple[str, NDArray[Any]]]) -> pa.Table:
    """From buffers: pa.array() of Python values imports pandas, a second of two cores."""
    positions_B = np.array([len(values_LD) for _, values_LD in group], np.int32)
    columns = [
        _joined(pa.string(), np.int32, [digest.encode() for digest, _ in group]),
        pa.Array.from_buffers(pa.int32(), len(group), [None, pa.py_buffer(positions_B)]),
        _joined(
            pa.large_binary(),
            np.int64,
            [np.ascontiguousarray(values_LD).reshape(-1).view(np.uint8) for _, values_LD in group],
        ),
    ]
    return pa.Table.from_arrays(columns, schema=EMBEDDINGS_SCHEMA)


def _joined(kind: pa.DataType, offset: type[np.integer], values: Sequence[Any]) -> pa.Array:
    """A column of strings or of bytes, from what can be read as bytes."""
    ends_B = np.cumsum([0, *(len(value) for value in values)], dtype=offset)
    return pa.Array.from_buffers(
        kind, len(values), [None, pa.py_buffer(ends_B), pa.py_buffer(b"".join(values))]
    )
