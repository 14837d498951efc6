"""Look after a storage root: list what is there, hash it all again, clear away what nothing refers to.

`listing` and `verify` only read. `collect_garbage` says what it would delete, and deletes only when told
to: temporary files of killed writers, embeddings of transcripts that are no longer here, references that
no manifest names. An unfinished dataset of the present transcripts is not garbage: the next embedding
run goes on with it.
"""

from __future__ import annotations

import gzip
import hashlib
import tempfile
import time
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from isoformer.embeddings.key import dataset_prefix
from isoformer.embeddings.shard_sequences import shard_sequences
from isoformer.embeddings.store import (
    embedding_shard_name,
    read_embeddings_manifest,
    read_footer,
    sequences_digest,
    verify_content,
)
from isoformer.embeddings.survey import READERS
from isoformer.encoders.weights_store import file_checks
from isoformer.errors import StorageError
from isoformer.manifest import MANIFEST_KEY, Manifest, read_manifest
from isoformer.schema import MODALITIES
from isoformer.sources.reference import reference_key
from isoformer.storage import LocalStorage, Storage, open_storage

_ABANDONED_SECONDS: Final = 3600
"""A temporary file older than this belongs to no running writer."""
_CHUNK_BYTES: Final = 8 << 20


@dataclass(frozen=True)
class Listed:
    """One dataset or group of objects under a root."""

    name: str
    kind: str
    objects: int
    bytes: int
    finished: bool
    detail: str


@dataclass(frozen=True)
class VerifyReport:
    """`problems` is empty where every object is what it says it is."""

    uri: str
    objects: int
    bytes: int
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


@dataclass(frozen=True)
class Garbage:
    """Something that could go, and why."""

    key: str
    bytes: int
    reason: str


def listing(root: str) -> list[Listed]:
    """Everything under a root, by dataset. StorageError where the root cannot be read."""
    storage = open_storage(root)
    groups: dict[str, list[str]] = {}
    for key in storage.list():
        groups.setdefault(_group(key), []).append(key)
    return [_listed(storage, name, keys) for name, keys in sorted(groups.items())]


def verify(root: str, *, progress: Callable[[str], None] | None = None) -> VerifyReport:
    """Hash every shard, the reference and all weights again; hold them against manifests and footers."""
    storage = open_storage(root)
    objects, size, problems = 0, 0, dict[str, str]()
    for key, check in _checks(storage, problems):
        if progress is not None:
            progress(key)
        objects += 1
        try:
            check()
            size += storage.size_bytes(key)
        except StorageError as error:
            problems[key] = str(error)
    return VerifyReport(storage.uri, objects, size, list(problems.values()))


def collect_garbage(root: str, *, delete: bool = False) -> list[Garbage]:
    """What could go; with `delete` it goes, manifests first: no dataset looks whole when it is not."""
    storage = open_storage(root)
    garbage = [*_abandoned(storage), *_unreferenced(storage)]
    if delete:
        for item in sorted(garbage, key=lambda item: not item.key.endswith("manifest.json")):
            storage.delete(item.key)
    return garbage


def _group(key: str) -> str:
    parts = key.split("/")
    depth = {"embeddings": 3, "runs": 2, "studies": 2}.get(parts[0], 1)
    return "/".join(parts[: min(depth, len(parts))])


def _listed(storage: Storage, name: str, keys: list[str]) -> Listed:
    size = sum(storage.size_bytes(key) for key in keys)
    kind = name.split("/")[0]
    finished, detail = True, ""
    if kind == "transcripts":
        finished = MANIFEST_KEY in keys
        detail = f"{read_manifest(storage).counts.rows_out} transcripts" if finished else ""
    elif kind == "embeddings":
        finished = f"{name}/manifest.json" in keys
        detail = _embeddings_detail(storage, f"{name}/manifest.json") if finished else ""
    return Listed(name, kind, len(keys), size, finished, detail if finished else "unfinished")


def _embeddings_detail(storage: Storage, manifest_key: str) -> str:
    manifest = read_embeddings_manifest(storage, manifest_key)
    sequences = sum(entry["sequences"] for entry in manifest["shards"])
    trained = manifest["spec"].get("trained", "unknown")
    return f"{sequences} sequences, width {manifest['width']}, {manifest['resolution']}, weights: {trained}"


def _checks(storage: Storage, damaged: Container[str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(object, what to do with it) for everything that carries a hash; shards before their manifests."""
    if storage.exists(MANIFEST_KEY):
        manifest = read_manifest(storage)
        for shard in manifest.shards:
            key = f"transcripts/{shard.name}"
            yield key, lambda key=key, shard=shard: _verify_transcripts(storage, key, shard.digest)  # type: ignore[misc]
        if manifest.reference_digest is not None:
            key = reference_key(manifest.reference_digest)
            yield key, lambda: _verify_reference(storage, str(manifest.reference_digest))
    for key in sorted(storage.list("embeddings/"), key=lambda key: key.endswith("/manifest.json")):
        if key.endswith("/manifest.json"):
            yield key, lambda key=key: _verify_manifest(storage, key, damaged)  # type: ignore[misc]
        elif key.endswith(".parquet"):
            yield key, lambda key=key: verify_content(storage, key)  # type: ignore[misc]
    yield from file_checks(storage)


def _verify_transcripts(storage: Storage, key: str, listed: str) -> None:
    digest = hashlib.blake2b(storage.read_bytes(key), digest_size=16).hexdigest()
    if digest != listed:
        raise StorageError(f"{storage.uri}/{key}: has digest {digest}, but its manifest lists {listed}")


def _verify_reference(storage: Storage, listed: str) -> None:
    key = reference_key(listed)
    digest = hashlib.blake2b(digest_size=16)
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            gzip.open(storage.download(key, Path(folder, "reference"))) as bases,
        ):
            while chunk := bases.read(_CHUNK_BYTES):
                digest.update(chunk)
    except (OSError, EOFError) as error:
        raise StorageError(f"{storage.uri}/{key}: cannot be read through: {error}") from None
    if digest.hexdigest() != listed:
        raise StorageError(f"{storage.uri}/{key}: holds a genome of digest {digest.hexdigest()}")


def _verify_manifest(storage: Storage, key: str, damaged: Container[str]) -> None:
    """Every listed shard is there, with the listed content; those known to be damaged are not told twice."""
    manifest = read_embeddings_manifest(storage, key)
    prefix = dataset_prefix(manifest["modality"], manifest["key"])
    for entry in manifest["shards"]:
        if prefix + entry["name"] in damaged:
            continue
        footer = read_footer(storage, prefix + entry["name"])
        if footer.content_digest != entry["content_digest"]:
            raise StorageError(
                f"{storage.uri}/{prefix}{entry['name']}: has content {footer.content_digest}, "
                f"but its manifest lists {entry['content_digest']}"
            )


def _abandoned(storage: Storage) -> Iterator[Garbage]:
    if not isinstance(storage, LocalStorage):
        return
    for path in storage.abandoned():
        status = path.stat()
        if time.time() - status.st_mtime > _ABANDONED_SECONDS:
            yield Garbage(
                path.relative_to(storage.root).as_posix(), status.st_size, "left by a killed writer"
            )


def _unreferenced(storage: Storage) -> Iterator[Garbage]:
    manifest = read_manifest(storage)
    for key in storage.list("reference/"):
        if manifest.reference_digest is None or not key.startswith(reference_key(manifest.reference_digest)):
            yield Garbage(key, storage.size_bytes(key), "a reference that the transcripts do not name")
    datasets: dict[str, list[str]] = {}
    for key in storage.list("embeddings/"):
        datasets.setdefault(key.rpartition("/")[0], []).append(key)
    present = dict.fromkeys(folder.split("/")[1] for folder in datasets)
    wanted = {modality: _wanted_shards(storage, modality, manifest) for modality in present}
    for folder, keys in datasets.items():
        yield from _superseded(storage, folder, keys, manifest, wanted[folder.split("/")[1]])


def _superseded(
    storage: Storage, folder: str, keys: list[str], manifest: Manifest, wanted: Container[str]
) -> Iterator[Garbage]:
    """Shards of sequences that no transcripts shard has any more, and a manifest that lists one."""
    stale = [key for key in keys if key.endswith(".parquet") and key.rpartition("/")[2] not in wanted]
    manifest_key = f"{folder}/manifest.json"
    reason = "its dataset has newer shards instead"
    if manifest_key in keys:
        listed = read_embeddings_manifest(storage, manifest_key)
        if stale and listed["transcripts_fingerprint"] != manifest.fingerprint:
            reason = "made from transcripts that are no longer here; embed would use its rows once more"
            yield Garbage(manifest_key, storage.size_bytes(manifest_key), reason)
    for key in stale:
        yield Garbage(key, storage.size_bytes(key), reason)


def _wanted_shards(storage: Storage, modality: str, manifest: Manifest) -> set[str]:
    if modality not in MODALITIES:
        return set()
    with ThreadPoolExecutor(READERS) as pool:
        shards = range(len(manifest.shards))
        held = pool.map(lambda shard: shard_sequences(storage, shard, modality), shards)
        return {
            embedding_shard_name(shard, sequences_digest(sequences.digests))
            for shard, sequences in enumerate(held)
        }
