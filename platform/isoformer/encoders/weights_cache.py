"""A node's copies of weights in object storage: fetched once, checked, then read by all workers of the node.

In: an `s3://` address. Out: a local folder or file under `~/.cache/isoformer` (or `ISOFORMER_CACHE`). One
process fetches, under a lock, into a hidden folder that gets its name when all of it is there and checked; a
killed download goes on with the file where it stopped. What changes in the storage gets another name here,
so that nothing is ever stale; the whole cache may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from isoformer.encoders.weights_manifest import (
    CONFIG,
    MANIFEST,
    SMALL_FILES,
    WeightsManifest,
    check_contents,
    fetch_needed,
    parse_manifest,
)
from isoformer.errors import EncoderError
from isoformer.storage import TEMPORARY_PREFIX, Storage, explain_local, open_storage

_REMOTE: Final = "s3://"


def is_remote(weights: str | None) -> bool:
    """Whether the weights lie in object storage, so that a node needs a copy."""
    return weights is not None and weights.startswith(_REMOTE)


def cache_folder() -> Path:
    """Where this node keeps copies."""
    return Path(os.environ.get("ISOFORMER_CACHE") or "~/.cache/isoformer").expanduser()


def local_folder(uri: str, *, whole: bool) -> Path:
    """A copy of the folder at `uri`; unless `whole`, of the small files alone, which is all a spec needs.

    EncoderError where it is no folder of weights, or where a file is not what its manifest lists.
    """
    storage = open_storage(uri)
    names = [key for key in storage.list() if "/" not in key]
    if CONFIG not in names:
        raise EncoderError(f"no {CONFIG} in {uri}")
    manifest = (
        parse_manifest(storage.read_bytes(MANIFEST), f"{uri}/{MANIFEST}") if MANIFEST in names else None
    )
    version = _version(storage, names, manifest)
    target = cache_folder() / "weights" / version
    if whole or target.is_dir():
        return _made_once(target, lambda folder: _fill(folder, storage, names, manifest))
    return _made_once(
        target.with_name(f"{version}-config"), lambda folder: _fill_small(folder, storage, names, manifest)
    )


def local_file(uri: str) -> Path:
    """A copy of the single object at `uri`, under its own name."""
    prefix, _, name = uri.rpartition("/")
    storage = open_storage(prefix)
    target = cache_folder() / "weights" / _version(storage, [name], None)
    return _made_once(target, lambda folder: _fetch(storage, name, folder)) / name


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Of several processes on this machine that want to make `target`, one at a time."""
    from filelock import FileLock

    with explain_local(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            yield


def _made_once(target: Path, fill: Callable[[Path], object]) -> Path:
    if target.is_dir():
        return target
    with alone(target):
        if not target.is_dir():
            unfinished = target.with_name(TEMPORARY_PREFIX + target.name)
            fill(unfinished)
            _name(unfinished, target)
    return target


def _name(unfinished: Path, target: Path) -> None:
    """Where the file system does not honour locks, another process may have been quicker."""
    try:
        os.replace(unfinished, target)
    except OSError:
        if not target.is_dir():
            raise


def _fill(folder: Path, storage: Storage, names: list[str], manifest: WeightsManifest | None) -> None:
    if manifest is None:
        fetch_needed(names, lambda name: _fetch(storage, name, folder), origin=storage.uri)
        return
    for name, file in manifest.files.items():
        path = _fetch(storage, name, folder)
        try:
            check_contents(path, file)
        except EncoderError:
            path.unlink()
            raise
    _fetch(storage, MANIFEST, folder)


def _fill_small(folder: Path, storage: Storage, names: list[str], manifest: WeightsManifest | None) -> None:
    for name in SMALL_FILES:
        if name in names:
            path = _fetch(storage, name, folder)
            if manifest is not None and name in manifest.files:
                check_contents(path, manifest.files[name])
    if manifest is not None:
        _fetch(storage, MANIFEST, folder)


def _fetch(storage: Storage, name: str, folder: Path) -> Path:
    """One object into the folder, unless an earlier attempt has done so: it appears whole or not at all."""
    path = folder / name
    return path if path.is_file() else storage.download(name, path)


def _version(storage: Storage, names: list[str], manifest: WeightsManifest | None) -> str:
    """A name that changes with the address or the contents."""
    contents = (
        manifest.to_bytes() if manifest else repr([(name, storage.stamp(name)) for name in names]).encode()
    )
    return hashlib.blake2b(f"{storage.uri}\n".encode() + contents, digest_size=16).hexdigest()
