"""Where an encoder's weights lie, what their digest is, and how they are read safely.

A folder holds `config.json` and `model.safetensors` (or `pytorch_model.bin`, read with
`weights_only=True`); the small published models are single files. No pickle other than plain tensors is
ever opened.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from isoformer.encoders.registry import EncoderChoice
from isoformer.errors import ConfigError, EncoderError

if TYPE_CHECKING:
    import torch

SHIPPED: Final = Path(__file__).parent / "weights"
_STATE_FILES: Final = ("model.safetensors", "pytorch_model.bin")


def weights_folder(choice: EncoderChoice) -> Path:
    """The folder the user named, or the shipped one. EncoderError where it has no config.json."""
    folder = Path(choice.weights).expanduser() if choice.weights else SHIPPED / choice.name
    if not (folder / "config.json").is_file():
        why = "" if choice.weights else "; this encoder comes without weights: give `weights`, a folder"
        raise EncoderError(f"encoder {choice.name}: no config.json in {folder}{why}")
    return folder


def weights_file(choice: EncoderChoice, *, suffix: str, fetch: str) -> Path:
    """The single file the user named. `fetch` says in one line how to get it."""
    if choice.weights is None:
        raise EncoderError(
            f"encoder {choice.name} comes without weights: give `weights`, a {suffix} file; {fetch}"
        )
    path = Path(choice.weights).expanduser()
    if not path.is_file() or path.suffix != suffix:
        raise EncoderError(f"encoder {choice.name}: weights {path} is not a {suffix} file; {fetch}")
    return path


def refuse_weights_with_seed(choice: EncoderChoice) -> None:
    """ConfigError where a single-file encoder is given both: its shapes are known without a file."""
    if choice.random_seed is not None and choice.weights is not None:
        raise ConfigError(f"encoder {choice.name}: give weights or random_seed, not both")


def state_file(folder: Path) -> Path:
    """The file in a folder that holds the tensors."""
    for name in _STATE_FILES:
        if (folder / name).is_file():
            return folder / name
    raise EncoderError(f"{folder}: no weights; expected one of {', '.join(_STATE_FILES)}")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as a mapping."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncoderError(f"{path}: cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise EncoderError(f"{path}: must be a mapping, got {type(config).__name__}")
    return config


def file_digest(path: Path) -> str:
    """blake2b, 16 bytes, hex, of the file's bytes."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def choice_digest(choice: EncoderChoice, path: Path | None) -> str:
    """`random-<seed>` for random weights, else the digest of the file's bytes."""
    if choice.random_seed is not None:
        return f"random-{choice.random_seed}"
    if path is None:
        raise EncoderError(f"encoder {choice.name} comes without weights: give `weights`")
    return file_digest(path)


def folder_digest(choice: EncoderChoice) -> str:
    """As `choice_digest`, for encoders whose weights are a folder."""
    return choice_digest(choice, state_file(weights_folder(choice)) if choice.random_seed is None else None)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from safetensors or from a torch file of plain tensors, in float32."""
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise EncoderError(f"{path}: not a readable file of plain tensors: {error}") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise EncoderError(f"{path}: must hold tensors by name and nothing else")
    return {str(name): tensor.float() for name, tensor in state.items()}


def check_names_and_shapes(
    expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], *, file: Path
) -> None:
    """EncoderError that names missing and surplus tensors, or those of another shape."""
    problems = []
    if missing := sorted(expected.keys() - found.keys()):
        problems.append(f"missing: {_few(missing)}")
    if surplus := sorted(found.keys() - expected.keys()):
        problems.append(f"not known: {_few(surplus)}")
    wrong = [
        f"{name} is {found[name]}, must be {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if wrong:
        problems.append(f"shape: {_few(wrong)}")
    if problems:
        raise EncoderError(f"{file}: the weights do not fit: {'; '.join(problems)}")


def _few(names: list[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
