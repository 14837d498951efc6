"""Embedding datasets on a storage root: published verified and whole, read by shard.

    embeddings/<modality>/<encoder key>/shard-00000.<sequences>.parquet   one row a distinct sequence
    embeddings/<modality>/<encoder key>/manifest.json                     written last: not finished without

A shard's name carries the first digits of the digest over its sequences, so that shards of earlier
transcripts stand beside the new ones, and rows that both have are copied, not computed again. A
`ShardWriter` fills a local file beside the computation, reads it back, and only then puts it, in one go
and only where nothing is there yet. Called by the encode stage (writes), by training (reads), by
`admin.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from isoformer.documents import stored_mapping
from isoformer.embeddings.key import dataset_prefix
from isoformer.embeddings.shard_file import (
    ShardFileWriter,
    ShardFooter,
    ShardHeader,
    explained,
    footer_of,
    group_rows,
    groups_of_digests,
    opened,
    rows_of,
    verify_rows,
)
from isoformer.errors import FingerprintError, StorageError, shortened
from isoformer.schema import SCHEMA_VERSION, Modality, shard_name
from isoformer.storage import Storage, explain_local

# L positions of one sequence, D width

_SCRATCH = "isoformer-shard-"
_SHARD_NAME = re.compile(r"shard-\d{5,}\.[0-9a-f]{12}\.parquet")


class ShardEntry(TypedDict):
    """A shard as the manifest lists it. `counts` are letters cropped or masked, by reason."""

    name: str
    sequences: int
    positions: int
    bytes: int
    content_digest: str
    sequences_digest: str
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
        manifest = read_embeddings_manifest(storage, path)
        if (manifest["modality"], manifest["key"]) != (modality, key):
            found = f"{manifest['modality']} dataset {manifest['key']!r}"
            raise StorageError(
                f"{storage.uri}/{path}: is of the {found}, not of the {modality} dataset {key!r}"
            )
        return cls(storage, manifest)

    def __len__(self) -> int:
        """How many shards there are."""
        return len(self.manifest["shards"])

    def shard_path(self, index: int) -> str:
        """The shard's object under the root."""
        return self.prefix + self.manifest["shards"][index]["name"]

    def read_shard(self, index: int) -> dict[str, NDArray[Any]]:
        """Digest → (positions, width) array, views of one buffer. Quarantined sequences are not there.

        FingerprintError where the shard is not the one that the manifest lists.
        """
        path = self.shard_path(index)
        listed = self.manifest["shards"][index]["content_digest"]
        with _file(self.storage, path) as (file, uri):
            footer = footer_of(file, uri)
            if footer.content_digest != listed:
                raise FingerprintError(
                    f"{uri}: has content {footer.content_digest}, but its manifest lists {listed}; "
                    "run `isoformer store verify`"
                )
            self._require_listed(footer.header, uri)
            with explained(uri):
                return dict(rows_of(file, footer.header))

    def _require_listed(self, header: ShardHeader, uri: str) -> None:
        """FingerprintError where a shard is of another kind than its manifest says."""
        found = {name: getattr(header, name) for name in ("key", "modality", "width", "dtype", "resolution")}
        listed: Mapping[str, Any] = {**self.manifest}
        if different := [name for name in found if found[name] != listed[name]]:
            told = ", ".join(f"{name} {found[name]!r}, not {listed[name]!r}" for name in different)
            raise FingerprintError(f"{uri}: is not as its manifest says: {told}")

    def read_lengths(self, index: int) -> tuple[dict[str, int], dict[str, str]]:
        """Digest → positions of a shard's rows, and the quarantined digests with why; reads no embedding."""
        with _file(self.storage, self.shard_path(index)) as (file, uri), explained(uri):
            footer = footer_of(file, uri)
            columns = file.read(columns=["digest", "positions"], use_threads=False)
            rows = zip(columns["digest"].to_pylist(), columns["positions"].to_pylist(), strict=True)
            return dict(rows), footer.quarantined


def embedding_shard_name(shard: int, sequences: str) -> str:
    """`shard-00003.0f1e2d3c4b5a.parquet`, of the digest over the shard's sequences."""
    return f"{Path(shard_name(shard)).stem}.{sequences[:12]}.parquet"


def shard_key(header: ShardHeader) -> str:
    """Where a shard is, under the root."""
    name = embedding_shard_name(header.shard, header.sequences_digest)
    return dataset_prefix(header.modality, header.key) + name


def is_shard_key(path: str) -> bool:
    """Whether an object bears a shard's name."""
    return _SHARD_NAME.fullmatch(path.rpartition("/")[2]) is not None


class ShardWriter:
    """One shard of one dataset: rows as they are made, then `publish`; `close` forgets an unfinished one."""

    def __init__(self, storage: Storage, header: ShardHeader) -> None:
        self._storage, self.header = storage, header
        with explain_local(Path(tempfile.gettempdir())):
            self._folder = tempfile.TemporaryDirectory(
                prefix=f"{_SCRATCH}{os.getpid()}-", ignore_cleanup_errors=True
            )
        self._local = Path(self._folder.name, shard_name(header.shard))
        with explain_local(self._local):
            self._file = ShardFileWriter(self._local, header)

    def add(self, digest: str, values_LD: NDArray[Any]) -> None:
        """The next row, (positions, width); waits where the disk is slower than the device."""
        with explain_local(self._local):
            self._file.add(digest, values_LD)

    def publish(self, quarantined: Mapping[str, str], counts: Mapping[str, int]) -> ShardEntry:
        """Finish, verify and publish the shard; the entry for the manifest.

        Where another writer was first, theirs stays: its entry is returned if it is the same shard of the
        same key, FingerprintError names both if not. StorageError where the rows do not survive being read
        back.
        """
        path = shard_key(self.header)
        uri = f"{self._storage.uri}/{path}"
        with explain_local(self._local):
            footer = self._file.finish(quarantined, counts)
            _verify_local(self._local, footer, uri)
            size_bytes = self._local.stat().st_size
        published = self._storage.put_file(self._local, path, if_absent=True)
        self.close()
        if published:
            return _entry(footer, size_bytes)
        return present_entry(self._storage, self.header)

    def close(self) -> None:
        """Remove the local file; what is published stays."""
        self._file.close()
        self._folder.cleanup()


def sweep_scratch() -> None:
    """Remove what workers that were killed on this machine left of unfinished shards."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*-*"):
        owner = folder.name.removeprefix(_SCRATCH).partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def present_entry(storage: Storage, header: ShardHeader) -> ShardEntry:
    """The manifest's entry of a shard that is there. FingerprintError where it is another's."""
    path = shard_key(header)
    footer = read_footer(storage, path)
    require_same(footer, header, f"{storage.uri}/{path}")
    return _entry(footer, storage.size_bytes(path))


def read_footer(storage: Storage, path: str) -> ShardFooter:
    """What a shard says it is, from its last bytes. StorageError where it is damaged or of another kind."""
    with _file(storage, path) as (file, uri):
        return footer_of(file, uri)


def require_same(present: ShardFooter, wanted: ShardHeader, uri: str) -> None:
    """FingerprintError, naming both sides of every difference, where a shard was made from something else."""
    _require_same_header(present.header, wanted, uri)


def _require_same_header(present: ShardHeader, wanted: ShardHeader, uri: str) -> None:
    found, asked = asdict(present), asdict(wanted)
    different = [
        f"{name} {found[name]!r} (wanted {asked[name]!r})" for name in asked if found[name] != asked[name]
    ]
    if different:
        raise FingerprintError(
            f"{uri}: was made from something else: {'; '.join(different)}; nothing was overwritten: "
            "choose another root, or remove it (`isoformer store gc` lists what no longer belongs here)"
        )


def digests_of(storage: Storage, path: str, wanted: ShardHeader) -> list[str]:
    """Which sequences a shard has rows of. FingerprintError where it is not of the dataset that is wanted."""
    with _file(storage, path) as (file, uri), explained(uri):
        _require_same_dataset(footer_of(file, uri).header, wanted, uri)
        return list(groups_of_digests(file))


def rows_by_digest(
    storage: Storage, path: str, wanted: ShardHeader, digests: Collection[str]
) -> dict[str, NDArray[Any]]:
    """Copies of some rows of a shard; only row groups that hold one of them are read.

    FingerprintError where the shard is not of the dataset that is wanted.
    """
    with _file(storage, path) as (file, uri), explained(uri):
        header = footer_of(file, uri).header
        _require_same_dataset(header, wanted, uri)
        of_digest = groups_of_digests(file)
        groups = sorted({of_digest[digest] for digest in digests if digest in of_digest})
        return {
            digest: values_LD.copy()
            for group in groups
            for digest, values_LD in group_rows(file, header, group)
            if digest in digests
        }


def _require_same_dataset(present: ShardHeader, wanted: ShardHeader, uri: str) -> None:
    """Another shard of the same dataset: key, modality, width, type and resolution are those wanted."""
    same_place = replace(wanted, shard=present.shard, sequences_digest=present.sequences_digest)
    _require_same_header(present, same_place, uri)


def sequences_digest(digests: Sequence[str]) -> str:
    """One digest over the distinct sequences of a shard."""
    return hashlib.blake2b("\n".join(sorted(digests)).encode(), digest_size=16).hexdigest()


def verify_content(storage: Storage, path: str) -> ShardFooter:
    """Read every row and hash it again. StorageError where a value, a count or the hash does not hold."""
    with _file(storage, path) as (file, uri):
        footer = footer_of(file, uri)
        verify_rows(file, footer, uri)
        with explained(uri):
            held = sequences_digest([*groups_of_digests(file), *footer.quarantined])
    if held != footer.header.sequences_digest:
        raise StorageError(
            f"{uri}: holds sequences of digest {held}, but its footer says {footer.header.sequences_digest}"
        )
    return footer


def read_embeddings_manifest(storage: Storage, key: str) -> EmbeddingsManifest:
    """StorageError where the object is no manifest of an embedding dataset."""
    manifest = stored_mapping(storage, key)
    try:
        TypeAdapter(EmbeddingsManifest).validate_python(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StorageError(
            f"{storage.uri}/{key}: is not a whole manifest: {where}: {first['msg']}; embed again"
        ) from None
    for shard in manifest["shards"]:
        if not is_shard_key(shard["name"]) or "/" in shard["name"]:
            raise StorageError(
                f"{storage.uri}/{key}: {shortened(shard['name'])} is no shard's name; embed again"
            )
    return cast(EmbeddingsManifest, manifest)


def write_manifest(storage: Storage, manifest: EmbeddingsManifest) -> None:
    """Publish the manifest: from now on the dataset exists. The same manifest is not written twice."""
    path = f"{dataset_prefix(manifest['modality'], manifest['key'])}manifest.json"
    data = json.dumps({**manifest, "schema_version": SCHEMA_VERSION}, indent=1, sort_keys=True).encode()
    if storage.exists(path) and storage.read_bytes(path) == data:
        return
    storage.write_bytes(path, data)


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
        "name": embedding_shard_name(footer.header.shard, footer.header.sequences_digest),
        "sequences": footer.sequences,
        "positions": footer.positions,
        "bytes": size_bytes,
        "content_digest": footer.content_digest,
        "sequences_digest": footer.header.sequences_digest,
        "quarantined": footer.quarantined_by_reason(),
        "counts": footer.counts,
    }
