"""What counts in a folder of weights, and the manifest that says where it comes from. Needs no torch.

A folder holds `config.json`, tokenizer files and the tensors: one file, or shards that an index names.
`isoformer weights pull` writes `manifest.json` beside them, last of all: every file with its size and
checksum, the repository and the commit. Names in an index or a manifest are plain file names: a path that
leads out of the folder is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from isoformer.config import FrozenConfig, build
from isoformer.documents import DocumentError, parse_mapping
from isoformer.errors import ConfigError, EncoderError

CONFIG: Final = "config.json"
MANIFEST: Final = "manifest.json"
SMALL_FILES: Final = (
    CONFIG,
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""All that a spec and a tokenizer need. No code is ever fetched."""
STATE_FILES: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where the tensors are: the first of these that a folder has."""
_INDEX: Final = ".index.json"


class WeightsFile(FrozenConfig):
    """One file of the folder."""

    bytes: int
    sha256: str


class WeightsManifest(FrozenConfig):
    """`commit` is null where the files came from a folder and nothing says which commit they are.

    `digest` is the tensors' (`state_digest`): what embeddings made with them are filed under.
    """

    format: Literal["isoformer-weights-1"] = "isoformer-weights-1"
    repository: str = Field(pattern=r"^[A-Za-z0-9_][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?$")
    commit: str | None
    licence: str
    digest: str
    files: dict[str, WeightsFile]

    @property
    def version(self) -> str:
        """The folder's name under the root: the commit's first digits, or those of all the contents."""
        if self.commit:
            return commit_version(self.commit)
        return f"folder-{hashlib.blake2b(self.to_bytes(), digest_size=6).hexdigest()}"

    @property
    def size_bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())

    def to_bytes(self) -> bytes:
        """The same bytes for the same contents, whoever writes them and when."""
        return (json.dumps(self.model_dump(), indent=1, sort_keys=True) + "\n").encode()


def commit_version(commit: str) -> str:
    """A commit's name as a folder."""
    return commit[:12]


def parse_manifest(data: bytes, origin: str) -> WeightsManifest | None:
    """The manifest; None for a `manifest.json` of another kind. EncoderError for a broken one."""
    content = _json(data, origin)
    if "format" not in content:
        return None
    try:
        manifest = build(WeightsManifest, content, origin=origin)
    except ConfigError as error:
        raise EncoderError(str(error)) from None
    for name in manifest.files:
        _require_plain(name, origin)
    return manifest


def folder_manifest(folder: Path) -> WeightsManifest | None:
    """The manifest in a folder, if it has one. EncoderError where a file has not the size it lists."""
    path = folder / MANIFEST
    return parse_manifest(_read(path), str(path)) if path.is_file() else None


def check_sizes(folder: Path, manifest: WeightsManifest) -> None:
    """EncoderError where a file of the manifest is missing or has another size: cheap, at every load."""
    for name, file in manifest.files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != file.bytes:
            found = "is missing" if size is None else f"has {size} bytes"
            raise EncoderError(f"{path}: {found}; {MANIFEST} lists {file.bytes} bytes: pull it again")


def check_contents(path: Path, file: WeightsFile) -> None:
    """EncoderError where a file is not, byte for byte, what the manifest lists."""
    if (found := file_sha256(path)) != file.sha256:
        raise EncoderError(f"{path}: has sha256 {found}, but {MANIFEST} lists {file.sha256}")


def describe(files: Iterable[Path]) -> dict[str, WeightsFile]:
    """Size and checksum of each file, by name."""
    return {
        path.name: WeightsFile(bytes=path.stat().st_size, sha256=file_sha256(path))
        for path in sorted(files, key=lambda path: path.name)
    }


def fetch_needed(names: Collection[str], fetch: Callable[[str], Path], *, origin: str) -> list[Path]:
    """Fetch what is needed of a folder's `names`: small files, then the tensors, all shards of them.

    Returns where they are now, without the shards: the last one is the file or index of the tensors.
    """
    state = state_name(names, origin)
    fetched = [fetch(name) for name in SMALL_FILES if name in names]
    fetched.append(fetch(state))
    for shard in dict.fromkeys(weight_map(fetched[-1]).values()) if state.endswith(_INDEX) else ():
        if shard not in names:
            raise EncoderError(f"{origin}: {state} names the shard {shard}, which is missing")
        fetch(shard)
    return fetched


def state_name(names: Collection[str], origin: str) -> str:
    """The file that holds the tensors, or the index of those that do."""
    for name in STATE_FILES:
        if name in names:
            return name
    raise EncoderError(f"{origin}: no weights; expected one of {', '.join(STATE_FILES)}")


def is_index(state: Path) -> bool:
    """Whether the file does not hold the tensors but says which ones do."""
    return state.name.endswith(_INDEX)


def shards(state: Path) -> list[Path]:
    """The files that hold the tensors. EncoderError where an index names one that is missing."""
    if not is_index(state):
        return [state]
    found = [state.parent / name for name in sorted(set(weight_map(state).values()))]
    for path in found:
        if not path.is_file():
            raise EncoderError(f"{state}: names the shard {path.name}, which is missing")
    return found


def weight_map(index: Path) -> dict[str, str]:
    """Tensor → the shard that holds it. EncoderError for anything else, and for a path among the names."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise EncoderError(f"{index}: weight_map must say for each tensor which file holds it")
    kind = Path(index.name.removesuffix(_INDEX)).suffix
    for name in set(names.values()):
        _require_plain(name, str(index))
        if Path(name).suffix != kind:
            raise EncoderError(f"{index}: shard {name!r} must be a {kind} file")
    return names


def state_digest(state: Path) -> str:
    """blake2b, 16 bytes, hex: of the file's bytes; of shards, over their names and digests."""
    files = shards(state)
    if files == [state]:
        return file_digest(state)
    lines = "".join(f"{path.name} {file_digest(path)}\n" for path in files)
    return hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """blake2b, 16 bytes, hex, of the file's bytes."""
    return _hashed(path, hashlib.blake2b(digest_size=16))


def file_sha256(path: Path) -> str:
    """What a hub states of a large file."""
    return _hashed(path, hashlib.sha256())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping; EncoderError for any other."""
    return _json(_read(path), str(path))


def _hashed(path: Path, digest: Any) -> str:
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return str(digest.hexdigest())


def _require_plain(name: str, origin: str) -> None:
    is_plain = bool(name) and name == Path(name).name and len(name.encode(errors="replace")) < 256
    if not is_plain or name.startswith(".") or "\\" in name:
        raise EncoderError(f"{origin}: {name!r} must be a plain file name in the same folder")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EncoderError(f"{path}: cannot be read: {error.strerror}") from None


def _json(data: bytes, origin: str) -> dict[str, Any]:
    try:
        return parse_mapping(data)
    except DocumentError as error:
        raise EncoderError(f"{origin}: {error}") from None
