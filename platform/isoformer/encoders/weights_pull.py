"""Fetch published weights once, check and convert them, and put them into the storage root.

In: an encoder's name and a root; the files come from the hub, or from a folder that was carried over. Out: a
version in the root (`weights_store`). A pull may be killed at any instant and run again: what was fetched
whole is kept in this node's cache, and nothing shows in the root before all of it is there. Token and address
of the hub are the client library's own affair (`HF_TOKEN`, `HF_ENDPOINT`); nothing here reads, says or
stores a token. No code is fetched, and none in a pickle is run.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from isoformer import __version__
from isoformer.encoders.catalogue import PUBLISHED
from isoformer.encoders.registry import HUGGING_FACE
from isoformer.encoders.weights_cache import alone, cache_folder
from isoformer.encoders.weights_convert import as_safetensors
from isoformer.encoders.weights_manifest import (
    WeightsManifest,
    check_contents,
    check_sizes,
    commit_version,
    describe,
    fetch_needed,
    file_sha256,
    folder_manifest,
    state_digest,
)
from isoformer.encoders.weights_store import (
    find_manifest,
    folder_uri,
    hub_repository,
    publish,
    require_same,
    use,
)
from isoformer.errors import ConfigError, EncoderError
from isoformer.storage import Storage, explain_local

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_BRANCH: Final = "main"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Pulled:
    """What is in the root now; `fetched` is False where it was there before."""

    uri: str
    manifest: WeightsManifest
    fetched: bool


def pull(
    name: str,
    storage: Storage,
    *,
    revision: str | None = None,
    folder: Path | None = None,
    say: Say = lambda line: None,
) -> Pulled:
    """Put an encoder's weights into the root, from the hub or from `folder`.

    `revision` names a commit (or a branch) and changes the root over to it. Without one it is the catalogue's
    pinned commit or else the branch's, and StorageError where the root uses another.
    """
    repository = hub_repository(name)
    if repository is None:
        raise ConfigError(
            f"encoder {name!r} has no published weights to pull; allowed: {', '.join(PUBLISHED)}, "
            f"{HUGGING_FACE}<organisation>/<repository>"
        )
    if folder is None:
        return _from_hub(name, repository, storage, revision, say)
    if revision is not None:
        raise ConfigError("give --revision or --from, not both: a folder is taken for what it is")
    return _from_folder(name, repository, storage, folder)


def _from_hub(name: str, repository: str, storage: Storage, revision: str | None, say: Say) -> Pulled:
    pinned = PUBLISHED[name].revision if name in PUBLISHED else None
    asked = revision or pinned or _BRANCH
    commit = asked if _COMMIT.fullmatch(asked) else str(_resolve(repository, asked).sha)
    version = commit_version(commit)
    if revision is None:
        require_same(storage, repository, commit)
    manifest = find_manifest(storage, repository, version)
    fetched = manifest is None
    if manifest is None:
        work = cache_folder() / "pulls" / f"{repository.replace('/', '--')}-{version}"
        with alone(work):  # a second pull on this machine finds the work done
            manifest = find_manifest(storage, repository, version)
            manifest = manifest or _fetch_and_publish(name, _resolve(repository, commit), storage, work, say)
            shutil.rmtree(work, ignore_errors=True)
    use(storage, repository, version, move=revision is not None)
    return Pulled(folder_uri(storage, repository, version), manifest, fetched)


def _fetch_and_publish(name: str, info: ModelInfo, storage: Storage, work: Path, say: Say) -> WeightsManifest:
    """`work` is a folder of this commit's own; files that an earlier pull has fetched whole are kept."""
    repository, commit = str(hub_repository(name)), str(info.sha)
    for part in work.rglob("*.incomplete"):  # of a killed pull; the client does not go on with it
        part.unlink()
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    fetched = fetch_needed(
        siblings,
        lambda file: _download(siblings[file], repository, commit, work / "hub", say),
        origin=f"{repository}@{commit}",
    )
    licence = PUBLISHED[name].licence if name in PUBLISHED else _licence(info)
    return _convert_and_publish(storage, fetched, work / "converted", repository, commit, licence)


def _from_folder(name: str, repository: str, storage: Storage, folder: Path) -> Pulled:
    """A folder with a manifest must be what that says; of any other, nobody knows the commit."""
    manifest = folder_manifest(folder)
    if manifest is None:
        manifest = _publish_folder(name, repository, storage, folder)
    else:
        _require_intact(folder, manifest, repository)
        publish(storage, manifest, [folder / file for file in manifest.files])
    use(storage, repository, manifest.version, move=True)
    return Pulled(folder_uri(storage, repository, manifest.version), manifest, True)


def _publish_folder(name: str, repository: str, storage: Storage, folder: Path) -> WeightsManifest:
    licence = PUBLISHED[name].licence if name in PUBLISHED else "unknown"
    with explain_local(folder, "cannot be read"):
        names = [path.name for path in folder.iterdir()]
    fetched = fetch_needed(names, lambda file: folder / file, origin=str(folder))
    with explain_local(cache_folder()):
        cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as converted:
        return _convert_and_publish(storage, fetched, Path(converted), repository, None, licence)


def _require_intact(folder: Path, manifest: WeightsManifest, repository: str) -> None:
    if manifest.repository != repository:
        raise EncoderError(f"{folder}: holds {manifest.repository}, but {repository} was asked for")
    check_sizes(folder, manifest)
    for file, listed in manifest.files.items():
        check_contents(folder / file, listed)


def _convert_and_publish(
    storage: Storage, fetched: list[Path], folder: Path, repository: str, commit: str | None, licence: str
) -> WeightsManifest:
    *small, state = fetched
    tensors = as_safetensors(state, folder)
    files = [*small, *tensors]
    manifest = WeightsManifest(
        repository=repository,
        commit=commit,
        licence=licence,
        digest=state_digest(tensors[0]),
        files=describe(files),
    )
    publish(storage, manifest, files)
    return manifest


def _resolve(repository: str, revision: str) -> ModelInfo:
    """What the hub says of a revision: its commit, its files and their checksums."""
    from huggingface_hub import HfApi

    with _explained(repository, revision):
        client = HfApi(library_name="isoformer", library_version=__version__)
        info = client.model_info(repository, revision=revision, files_metadata=True)
    if _COMMIT.fullmatch(revision) and info.sha != revision:
        raise EncoderError(f"{repository}: the hub answers commit {info.sha} where {revision} was asked for")
    return info


def _download(sibling: RepoSibling, repository: str, commit: str, folder: Path, say: Say) -> Path:
    """One file, whole, and as the hub states it; one that is not is deleted."""
    from huggingface_hub import hf_hub_download

    say(f"{repository}@{commit}: {sibling.rfilename}, {(sibling.size or 0) / 1e6:,.1f} MB")
    with _explained(repository, commit):
        path = Path(
            hf_hub_download(
                repository,
                sibling.rfilename,
                revision=commit,
                local_dir=folder,
                library_name="isoformer",
                library_version=__version__,
            )
        )
    stated, found = _checksums(sibling, path)
    if stated != found:
        path.unlink()
        raise EncoderError(
            f"{repository}@{commit}: {sibling.rfilename} arrived with checksum {found}, the hub states "
            f"{stated}; it is deleted, run the same command again"
        )
    return path


def _checksums(sibling: RepoSibling, path: Path) -> tuple[str | None, str | None]:
    """(stated, found): sha256 of a large file, git's own hash of a small one."""
    if sibling.lfs is not None:
        return sibling.lfs.sha256, file_sha256(path)
    if sibling.blob_id is None:
        return None, None
    data = path.read_bytes()
    return sibling.blob_id, hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _licence(info: ModelInfo) -> str:
    stated = info.card_data.get("license") if info.card_data else None
    return str(stated or "unknown")


@contextmanager
def _explained(repository: str, revision: str) -> Iterator[None]:
    """The client's errors, named by kind: its texts hold addresses, which may hold signatures."""
    from httpx2 import HTTPError
    from huggingface_hub import errors

    where = f"{repository} at {revision}"
    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise EncoderError(f"{where}: HF_HUB_OFFLINE is set; unset it, or give --from FOLDER") from None
    except errors.GatedRepoError:
        raise EncoderError(
            f"{where}: asks to accept its licence first: do so on the hub, set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise EncoderError(
            f"{where}: the hub has no such revision; name another: --revision COMMIT"
        ) from None
    except errors.RepositoryNotFoundError:
        raise EncoderError(
            f"{where}: the hub has no such repository, or hides it: HF_TOKEN is read"
        ) from None
    except (HTTPError, errors.XetDownloadError, OSError) as error:
        raise EncoderError(
            f"{where}: cannot be fetched ({type(error).__name__}); check the network and HF_ENDPOINT, then "
            "run the same again: whole files are kept; or carry a folder over: --from FOLDER"
        ) from None
