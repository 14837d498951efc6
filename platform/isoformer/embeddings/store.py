"""Embedding datasets on a storage root: published verified and whole, read by shard.

    embeddings/<modality>/<encoder key>/shard-00000.parquet …   one row a distinct sequence, sorted by digest
    embeddings/<modality>/<encoder key>/manifest.json           written last: without it, not finished

`write_shard` writes a local file, reads it back, and only then puts it, in one go and only where nothing is
there yet. Called by the encode stage (writes), by training (reads), by `admin.py` (verifies).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from isoformer.embeddings.key import dataset_prefix
from isoformer.embeddings.shard_file import (
    ShardFooter,
    ShardHeader,
    footer_of,
    opened,
    rows_of,
    verify_rows,
    write_file,
)
from isoformer.errors import FingerprintError, StorageError
from isoformer.schema import SCHEMA_VERSION, Modality, shard_name
from isoformer.storage import Storage, explain_local

# L positions of one sequence, D width


class ShardEntry(TypedDict):
    """A shard as the manifest lists it. `counts` are letters cropped or masked, by reason."""

    name: str
    sequences: int
    positions: int
    bytes: int
    content_digest: str
    transcripts_digest: str
    quarantined: dict[str, int]
    counts: dict[str, int]


class EmbeddingsManifest(TypedDict):
    """manifest.json of an embedding dataset."""

    schema_version: int
    key: str
    modality: Modality
    spec: dict[str, Any]
    weights_digest: str
    resolution: str
    dtype: str
    width: int
    transcripts_fingerprint: str
    shards: list[ShardEntry]


class EmbeddingDataset:
    """A finished dataset, read shard by shard. Trusts the manifest and the footers, never a listing."""

    def __init__(self, storage: Storage, manifest: EmbeddingsManifest) -> None:
        self.storage, self.manifest = storage, manifest
        self.prefix = dataset_prefix(manifest["modality"], manifest["key"])

    @classmethod
    def open(cls, storage: Storage, modality: Modality, key: str) -> EmbeddingDataset:
        """StorageError where the dataset is not there, or not finished."""
        path = f"{dataset_prefix(modality, key)}manifest.json"
        if not storage.exists(path):
            raise StorageError(
                f"{storage.uri}/{path}: there is no finished {modality} dataset {key!r}; run embed again"
            )
        return cls(storage, json.loads(storage.read_bytes(path)))

    def __len__(self) -> int:
        """How many shards there are."""
        return len(self.manifest["shards"])

    def read_shard(self, index: int) -> dict[str, NDArray[Any]]:
        """Digest → (positions, width) array, views of one buffer. Quarantined sequences are not there.

        FingerprintError where the shard is not the one that the manifest lists.
        """
        path = self.prefix + shard_name(index)
        listed = self.manifest["shards"][index]["content_digest"]
        with _file(self.storage, path) as (file, uri):
            footer = footer_of(file, uri)
            if footer.content_digest != listed:
                raise FingerprintError(
                    f"{uri}: has content {footer.content_digest}, but its manifest lists {listed}; "
                    "run `isoformer store verify`"
                )
            return dict(rows_of(file, footer.header))


def write_shard(
    storage: Storage,
    header: ShardHeader,
    rows: Mapping[str, NDArray[Any]],
    quarantined: Mapping[str, str] | None = None,
    counts: Mapping[str, int] | None = None,
) -> ShardEntry:
    """Write, verify and publish one shard; the entry for the manifest.

    Where another writer was first, theirs stays: its entry is returned if it is the same shard of the same
    key, FingerprintError names both if not. StorageError where the rows do not survive being read back.
    """
    path = dataset_prefix(header.modality, header.key) + shard_name(header.shard)
    with tempfile.TemporaryDirectory(prefix="isoformer-shard-") as folder:
        local = Path(folder, shard_name(header.shard))
        with explain_local(local):
            footer = write_file(local, header, rows, quarantined or {}, counts or {})
            _verify_local(local, footer, f"{storage.uri}/{path}")
        if storage.put_file(local, path, if_absent=True):
            return _entry(footer, local.stat().st_size)
    present = read_footer(storage, path)
    require_same(present, header, f"{storage.uri}/{path}")
    return _entry(present, storage.size_bytes(path))


def read_footer(storage: Storage, path: str) -> ShardFooter:
    """What a shard says it is, from its last bytes. StorageError where it is damaged or of another kind."""
    with _file(storage, path) as (file, uri):
        return footer_of(file, uri)


def shard_entry(storage: Storage, path: str, footer: ShardFooter) -> ShardEntry:
    """The manifest's entry for a shard that is already there."""
    return _entry(footer, storage.size_bytes(path))


def require_same(present: ShardFooter, wanted: ShardHeader, uri: str) -> None:
    """FingerprintError, naming both sides of every difference, where a shard was made from something else."""
    found, asked = asdict(present.header), asdict(wanted)
    different = [
        f"{name} {found[name]!r} (wanted {asked[name]!r})" for name in asked if found[name] != asked[name]
    ]
    if different:
        raise FingerprintError(
            f"{uri}: was made from something else: {'; '.join(different)}; nothing was overwritten: "
            "choose another root, or remove it (`isoformer store gc` lists what no longer belongs here)"
        )


def verify_content(storage: Storage, path: str) -> ShardFooter:
    """Read every row and hash it again. StorageError where a value, a count or the hash does not hold."""
    with _file(storage, path) as (file, uri):
        footer = footer_of(file, uri)
        verify_rows(file, footer, uri)
    return footer


def write_manifest(storage: Storage, manifest: EmbeddingsManifest) -> None:
    """Publish the manifest: from now on the dataset exists. The same manifest is not written twice."""
    path = f"{dataset_prefix(manifest['modality'], manifest['key'])}manifest.json"
    data = json.dumps({**manifest, "schema_version": SCHEMA_VERSION}, indent=1, sort_keys=True).encode()
    if storage.exists(path) and storage.read_bytes(path) == data:
        return
    storage.write_bytes(path, data)


def sequences_digest(digests: Sequence[str]) -> str:
    """One digest over the distinct sequences of a shard."""
    return hashlib.blake2b("\n".join(sorted(digests)).encode(), digest_size=16).hexdigest()


@contextmanager
def _file(storage: Storage, path: str) -> Iterator[tuple[pq.ParquetFile, str]]:
    uri = f"{storage.uri}/{path}"
    with storage.open_input(path) as source, opened(source, uri) as file:
        yield file, uri


def _verify_local(local: Path, written: ShardFooter, uri: str) -> None:
    with pa.memory_map(str(local), "r") as source, opened(source, uri) as file:
        if footer_of(file, uri) != written:
            raise StorageError(f"{uri}: the footer read back is not the one written; nothing was published")
        verify_rows(file, written, uri)


def _entry(footer: ShardFooter, size_bytes: int) -> ShardEntry:
    return {
        "name": shard_name(footer.header.shard),
        "sequences": footer.sequences,
        "positions": footer.positions,
        "bytes": size_bytes,
        "content_digest": footer.content_digest,
        "transcripts_digest": footer.header.transcripts_digest,
        "quarantined": footer.quarantined_by_reason(),
        "counts": footer.counts,
    }
