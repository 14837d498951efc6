"""The file format of an embedding shard: Parquet with raw rows and a footer that says what they are.

One row a distinct sequence, sorted by digest. The footer holds key, width, dtype, resolution, the
transcripts shard that it was made from, counts by reason, the digests that were quarantined and why, and
a digest over the rows. There is no time stamp: the same input makes the same bytes. `store.py` publishes
and reads these files; nothing else knows the format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from isoformer.embeddings.key import NUMPY_DTYPES
from isoformer.errors import StorageError
from isoformer.schema import EMBEDDINGS_SCHEMA, Modality

# L positions of one sequence, D width

_FOOTER: Final = b"isoformer"
_ROW_GROUP_BYTES: Final = 16 << 20
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

    `transcripts_digest` is the transcripts shard's; `sequences_digest` is over the distinct sequences wanted.
    """

    key: str
    modality: Modality
    width: int
    dtype: str
    resolution: str
    shard: int
    transcripts_digest: str
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


def write_file(
    local: Path,
    header: ShardHeader,
    rows: Mapping[str, NDArray[Any]],
    quarantined: Mapping[str, str],
    counts: Mapping[str, int],
) -> ShardFooter:
    """Write a shard to a local file. StorageError for an array that is not (positions, width)."""
    content = _ContentHash()
    with pq.ParquetWriter(local, EMBEDDINGS_SCHEMA, **_PARQUET_SETTINGS) as writer:
        for group in _row_groups(rows):
            writer.write_table(_table(group, rows, header), row_group_size=max(1, len(group)))
            for digest in group:
                content.add(digest, rows[digest])
        positions = sum(len(values_LD) for values_LD in rows.values())
        reasons = (dict(sorted(quarantined.items())), dict(sorted(counts.items())))
        footer = ShardFooter(header, len(rows), positions, content.hexdigest(), *reasons)
        writer.add_key_value_metadata({_FOOTER.decode(): json.dumps(asdict(footer), sort_keys=True)})
    return footer


def opened(source: pa.NativeFile, uri: str) -> pq.ParquetFile:
    """StorageError where the object is truncated or no Parquet file."""
    try:
        return pq.ParquetFile(source, page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise StorageError(
            f"{uri}: is not a whole Parquet file; delete it and run embed again: {error}"
        ) from None


def footer_of(file: pq.ParquetFile, uri: str) -> ShardFooter:
    """What a shard says it is. StorageError where it is a file of another kind."""
    text = (file.metadata.metadata or {}).get(_FOOTER)
    if text is None:
        raise StorageError(f"{uri}: is a Parquet file, but its footer says nothing of embeddings")
    data = json.loads(text)
    return ShardFooter(**{**data, "header": ShardHeader(**data["header"])})


def rows_of(file: pq.ParquetFile, header: ShardHeader) -> Iterator[tuple[str, NDArray[Any]]]:
    """(digest, (positions, width) array) row by row; arrays are views of one buffer a row group."""
    dtype = NUMPY_DTYPES[header.dtype]
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, use_threads=False)
        digests, positions = table["digest"].to_pylist(), table["positions"].to_pylist()
        for row, (digest, length) in enumerate(zip(digests, positions, strict=True)):
            buffer = table["embedding"][row].as_buffer()
            yield digest, np.frombuffer(buffer, dtype).reshape(length, header.width)


def verify_rows(file: pq.ParquetFile, footer: ShardFooter, uri: str) -> None:
    """Hash every row again. StorageError where a value is not finite, or counts or hash do not hold."""
    content, sequences, positions = _ContentHash(), 0, 0
    try:
        for digest, values_LD in rows_of(file, footer.header):
            if not np.isfinite(values_LD).all():
                raise StorageError(f"{uri}: sequence {digest} holds a value that is not finite")
            content.add(digest, values_LD)
            sequences, positions = sequences + 1, positions + len(values_LD)
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise StorageError(f"{uri}: cannot be read back: {error}") from None
    found = replace(footer, sequences=sequences, positions=positions, content_digest=content.hexdigest())
    if found != footer:
        raise StorageError(f"{uri}: its rows are {_told(found)}, but its footer says {_told(footer)}")


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


def _row_groups(rows: Mapping[str, NDArray[Any]]) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for digest in sorted(rows):
        group.append(digest)
        size += rows[digest].nbytes
        if size >= _ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group or not rows:
        yield group


def _table(group: Sequence[str], rows: Mapping[str, NDArray[Any]], header: ShardHeader) -> pa.Table:
    dtype = NUMPY_DTYPES[header.dtype]
    for digest in group:
        if rows[digest].dtype != dtype or rows[digest].ndim != 2 or rows[digest].shape[1] != header.width:
            raise StorageError(
                f"{header.key}, sequence {digest}: got {rows[digest].shape} of {rows[digest].dtype}; "
                f"allowed: (positions, {header.width}) of {dtype}"
            )
    columns = [
        pa.array(group, pa.string()),
        pa.array([len(rows[digest]) for digest in group], pa.int32()),
        pa.array([rows[digest].tobytes() for digest in group], pa.large_binary()),
    ]
    return pa.Table.from_arrays(columns, schema=EMBEDDINGS_SCHEMA)
