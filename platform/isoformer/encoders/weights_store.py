"""Published weights in a storage root: pulled there once, read from there by every worker.

    weights/<repository>/current.json            which version this root uses
    weights/<repository>/<version>/manifest.json, config.json, model.safetensors, …

A version is a commit's first digits. Its manifest is written last: a folder without one does not exist for
readers. A root uses one version of a repository until somebody names another, so that a branch that moves
on the hub moves nothing here. Called by the embedding stage and by `isoformer weights`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from isoformer.documents import stored_mapping
from isoformer.encoders.catalogue import PUBLISHED
from isoformer.encoders.registry import HUGGING_FACE, EncoderChoice
from isoformer.encoders.weights_manifest import (
    CONFIG,
    MANIFEST,
    WeightsManifest,
    commit_version,
    parse_manifest,
)
from isoformer.errors import EncoderError, StorageError, shortened
from isoformer.storage import Storage

_PREFIX: Final = "weights/"
_CURRENT: Final = "current.json"
_CHUNK_BYTES: Final = 8 << 20
_VERSION: Final = re.compile(r"\w[\w.-]*", re.ASCII)
_REPOSITORY: Final = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)


@dataclass(frozen=True)
class Listed:
    """One version of a repository in a root. `encoders`: the names that mean it."""

    encoders: list[str]
    repository: str
    version: str
    commit: str | None
    licence: str
    files: int
    bytes: int
    in_use: bool


def hub_repository(name: str) -> str | None:
    """The repository that an encoder's weights are published in; None where there is none to pull.

    `hf:` with a folder that is there means that folder.
    """
    if name in PUBLISHED:
        return PUBLISHED[name].hub
    repository = name.removeprefix(HUGGING_FACE)
    if repository == name or not _REPOSITORY.fullmatch(repository) or Path(repository, CONFIG).is_file():
        return None
    return repository


def located(choice: EncoderChoice, storage: Storage) -> EncoderChoice:
    """The choice with the root's folder as `weights`, where it names published weights and no others.

    EncoderError, with the command that mends it, where the root does not hold them. Random weights of a
    published size need none.
    """
    repository = hub_repository(choice.name)
    needs_none = choice.random_seed is not None and choice.name in PUBLISHED
    if repository is None or choice.weights is not None or needs_none:
        return choice
    version = current_version(storage, repository)
    if version is None or find_manifest(storage, repository, version) is None:
        raise EncoderError(
            f"encoder {choice.name}: its weights are not in {storage.uri}; fetch them once with: "
            f"isoformer weights pull {choice.name} --set root={storage.uri}"
        )
    return choice.edited(weights=folder_uri(storage, repository, version))


def folder_uri(storage: Storage, repository: str, version: str) -> str:
    """Where a version lies."""
    return f"{storage.uri}/{_PREFIX}{repository}/{version}"


def current_version(storage: Storage, repository: str) -> str | None:
    """The version that this root uses. StorageError where the file that says so is damaged."""
    key = f"{_PREFIX}{repository}/{_CURRENT}"
    if not storage.exists(key):
        return None
    version: str = stored_mapping(storage, key, {"version": str})["version"]
    if not _VERSION.fullmatch(version):
        raise StorageError(f"{storage.uri}/{key}: version {shortened(version)} is no version's name")
    return version


def find_manifest(storage: Storage, repository: str, version: str) -> WeightsManifest | None:
    """A version's manifest; None where it is not there, or not whole."""
    key = f"{_PREFIX}{repository}/{version}/{MANIFEST}"
    return parse_manifest(storage.read_bytes(key), f"{storage.uri}/{key}") if storage.exists(key) else None


def publish(storage: Storage, manifest: WeightsManifest, files: Iterable[Path]) -> None:
    """Put the files, then the manifest. Of two that publish the same at once, both are right.

    StorageError where another one has put something else under the same version.
    """
    prefix = f"{_PREFIX}{manifest.repository}/{manifest.version}/"
    for path in files:
        storage.put_file(path, prefix + path.name)
    if storage.write_bytes(prefix + MANIFEST, manifest.to_bytes(), if_absent=True):
        return
    if storage.read_bytes(prefix + MANIFEST) != manifest.to_bytes():
        raise StorageError(
            f"{storage.uri}/{prefix}: holds other files under the same version; delete it first"
        )


def use(storage: Storage, repository: str, version: str, *, move: bool) -> None:
    """Make `version` the one that this root uses. StorageError where it uses another, unless `move`."""
    key = f"{_PREFIX}{repository}/{_CURRENT}"
    if not storage.write_bytes(key, json.dumps({"version": version}).encode(), if_absent=not move):
        require_same(storage, repository, version)


def require_same(storage: Storage, repository: str, commit: str) -> None:
    """StorageError where the root uses another version of the repository than that commit's."""
    used = current_version(storage, repository)
    if used not in (None, commit_version(commit)):
        raise StorageError(
            f"{storage.uri} uses {used} of {repository}, and this would be {commit}; nothing is changed. "
            f"To change over, name it: --revision {commit}"
        )


def listing(storage: Storage) -> list[Listed]:
    """Every version in the root."""
    return [
        _listed(manifest, in_use=manifest.version == current_version(storage, manifest.repository))
        for _, manifest in _manifests(storage)
    ]


def file_checks(storage: Storage) -> Iterator[tuple[str, Callable[[], None]]]:
    """(object, what hashes it again) for every file that a manifest in the root lists."""
    for folder, manifest in _manifests(storage):
        for name, file in manifest.files.items():
            yield folder + name, partial(_check_object, storage, folder + name, file.sha256)


def _manifests(storage: Storage) -> Iterator[tuple[str, WeightsManifest]]:
    """(folder's prefix, manifest) of every version."""
    for key in storage.list(_PREFIX):
        if key.endswith(f"/{MANIFEST}"):
            manifest = parse_manifest(storage.read_bytes(key), f"{storage.uri}/{key}")
            if manifest is not None:
                yield key.removesuffix(MANIFEST), manifest


def _check_object(storage: Storage, key: str, listed: str) -> None:
    digest = hashlib.sha256()
    with storage.open_input(key) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != listed:
        raise StorageError(
            f"{storage.uri}/{key}: has sha256 {digest.hexdigest()}, but its manifest lists {listed}"
        )


def _listed(manifest: WeightsManifest, *, in_use: bool) -> Listed:
    names = [entry.name for entry in PUBLISHED.values() if entry.hub == manifest.repository]
    return Listed(
        names or [HUGGING_FACE + manifest.repository],
        manifest.repository,
        manifest.version,
        manifest.commit,
        manifest.licence,
        len(manifest.files),
        manifest.size_bytes,
        in_use,
    )
