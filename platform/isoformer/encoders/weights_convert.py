"""Published tensors as safetensors files that any storage takes, without running a line of anybody's code.

In: the file of a folder that holds the tensors, or the index of its shards. Out: safetensors. What is so
already is left as it is, byte for byte; torch files, and files too large for one put, are written anew with
the same values and types.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from isoformer.encoders.weights_files import check_complete, stored_tensors
from isoformer.encoders.weights_manifest import shards
from isoformer.errors import EncoderError

if TYPE_CHECKING:
    import torch

SHARD_BYTES: Final = 2 << 30
"""Of a file that is written; also about the memory that writing takes."""
LARGEST_BYTES: Final = 4 << 30
"""S3 takes at most 5 GiB in one put."""


def as_safetensors(state: Path, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> list[Path]:
    """The tensors' files, their index (or the single file) first; what is written goes into `folder`.

    EncoderError where something else than plain tensors is among them.
    """
    files = shards(state)
    plain = all(path.suffix == ".safetensors" and path.stat().st_size <= LARGEST_BYTES for path in files)
    if plain:
        check_complete(state, {name for path in files for name in _names(path)})
        return list(dict.fromkeys([state, *files]))
    return _write_shards(_tensors(state), folder, shard_bytes)


def _names(path: Path) -> list[str]:
    """Of the tensors in a safetensors file; reading them checks that the file is whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise EncoderError(f"{path}: not a readable safetensors file: {error}") from None


def _tensors(state: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """One after the other, a file at a time."""
    names: set[str] = set()
    for path in shards(state):
        tensors = stored_tensors(path)
        names |= tensors.keys()
        yield from sorted(tensors.items())
    check_complete(state, names)


def _write_shards(tensors: Iterator[tuple[str, torch.Tensor]], folder: Path, shard_bytes: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written: list[tuple[Path, list[str]]] = []
    batch: dict[str, torch.Tensor] = {}
    size = total = 0
    for name, tensor in tensors:
        if batch and size + tensor.nbytes > shard_bytes:
            written.append(_write(batch, folder / f"model-{len(written) + 1:05}.safetensors"))
            batch, size = {}, 0
        batch[name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    if not written:
        return [_write(batch, folder / "model.safetensors")[0]]
    written.append(_write(batch, folder / f"model-{len(written) + 1:05}.safetensors"))
    return [_write_index(written, folder, total), *(path for path, _ in written)]


def _write(batch: dict[str, torch.Tensor], path: Path) -> tuple[Path, list[str]]:
    """Tensors that share memory, as tied weights do, are written each for itself."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous().clone() for name, tensor in batch.items()}, path, {"format": "pt"})
    return path, list(batch)


def _write_index(written: list[tuple[Path, list[str]]], folder: Path, total_bytes: int) -> Path:
    places = {name: path.name for path, names in written for name in names}
    index = folder / "model.safetensors.index.json"
    content = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(places.items()))}
    index.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return index
