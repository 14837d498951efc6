"""Where an encoder's weights lie, what their digest is, and how they are read safely.

A folder holds `config.json` and the tensors: `model.safetensors`, `pytorch_model.bin` (read with
`weights_only=True`), or either in shards that an index names; the small published models are single files.
Both may also lie under `s3://`, whereupon this machine gets a copy. No pickle other than plain tensors is
ever opened.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from isoformer.encoders.catalogue import PUBLISHED
from isoformer.encoders.registry import HUGGING_FACE, EncoderChoice
from isoformer.encoders.weights_cache import is_remote, local_file, local_folder
from isoformer.encoders.weights_manifest import (
    CONFIG,
    check_sizes,
    folder_manifest,
    is_index,
    read_json,
    shards,
    state_digest,
    state_name,
    weight_map,
)
from isoformer.errors import ConfigError, EncoderError
from isoformer.torch_file import TorchFileError, read_torch_file

if TYPE_CHECKING:
    import torch

SHIPPED: Final = Path(__file__).parent / "weights"
_SINGLE_FILES: Final = (".pth", ".h5", ".npz")


def weights_folder(choice: EncoderChoice) -> Path:
    """The folder the user named or the shipped one, whole and on this machine.

    EncoderError where it has no config.json, or where a file is not as large as its manifest says.
    """
    return _folder(choice, whole=True)


def config_folder(choice: EncoderChoice) -> Path:
    """As `weights_folder`, for a spec and a tokenizer: of an s3:// folder no tensors are fetched."""
    return _folder(choice, whole=False)


def origin(choice: EncoderChoice) -> tuple[str, str | None]:
    """(repository or path of the weights, their commit or None): for people, no part of any identity.

    A pulled folder's manifest knows both. Where no weights are given: what the name is pinned to, or nothing.
    """
    if choice.weights is None:
        entry = PUBLISHED.get(choice.name)
        return (entry.hub, entry.revision) if entry else ("", None)
    is_file = choice.weights.endswith(_SINGLE_FILES)
    manifest = None if is_file else folder_manifest(config_folder(choice))
    return (manifest.repository, manifest.commit) if manifest else (choice.weights, None)


def weights_file(choice: EncoderChoice, *, suffix: str, fetch: str) -> Path:
    """The single file the user named. `fetch` says in one line how to get it."""
    if choice.weights is None:
        raise EncoderError(
            f"encoder {choice.name} comes without weights: give `weights`, a {suffix} file; {fetch}"
        )
    if is_remote(choice.weights) and choice.weights.endswith(suffix):
        return local_file(choice.weights)
    path = Path(choice.weights).expanduser()
    if not path.is_file() or path.suffix != suffix:
        raise EncoderError(f"encoder {choice.name}: weights {path} is not a {suffix} file; {fetch}")
    return path


def refuse_weights_with_seed(choice: EncoderChoice) -> None:
    """ConfigError where a single-file encoder is given both: its shapes are known without a file."""
    if choice.random_seed is not None and choice.weights is not None:
        raise ConfigError(f"encoder {choice.name}: give weights or random_seed, not both")


def state_file(folder: Path) -> Path:
    """The file in a folder that holds the tensors, or the index of the shards that do."""
    return folder / state_name([path.name for path in folder.iterdir()], str(folder))


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as a mapping."""
    return read_json(folder / CONFIG)


def choice_digest(choice: EncoderChoice, path: Path | None) -> str:
    """`random-<seed>` for random weights, else the digest of the file's bytes (or of all shards')."""
    if choice.random_seed is not None:
        return f"random-{choice.random_seed}"
    if path is None:
        raise EncoderError(f"encoder {choice.name} comes without weights: give `weights`")
    return state_digest(path)


def folder_digest(choice: EncoderChoice) -> str:
    """As `choice_digest`, for encoders whose weights are a folder; a manifest's word is taken.

    It was checked when the weights were pulled, and is again when a node copies them.
    """
    if choice.random_seed is not None:
        return choice_digest(choice, None)
    manifest = folder_manifest(config_folder(choice))
    return manifest.digest if manifest else choice_digest(choice, state_file(weights_folder(choice)))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """A state dict in float32: from safetensors, a torch file of plain tensors, or an index of shards.

    EncoderError for anything else, and for a shard that is missing, corrupted or lacks what the index lists.
    """
    state: dict[str, torch.Tensor] = {}
    for file in shards(path):
        state |= stored_tensors(file)
    check_complete(path, state)
    return {name: tensor.float() for name, tensor in state.items()}


def stored_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The plain tensors of one file as they are stored, mapped into memory where the format allows it."""
    return plain_tensors(stored_content(path), path)


def stored_content(path: Path, *, classes: Sequence[type] = ()) -> object:
    """What one file holds: tensors, plain containers and, of a torch file, instances of `classes`.

    EncoderError for anything else; no code of the file's is run.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return read_torch_file(path, classes=classes, mmap=True)
    except (SafetensorError, TorchFileError, OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise EncoderError(f"{path}: not a readable file of plain tensors: {error}") from None


def plain_tensors(state: object, path: Path) -> dict[str, torch.Tensor]:
    """The content as tensors by name. EncoderError where it is something else."""
    import torch

    if not isinstance(state, dict):
        raise EncoderError(f"{path}: must hold tensors by name, holds a {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
            raise EncoderError(
                f"{path}: must hold plain tensors by name and nothing else; "
                f"{name!r} is {_article(type(value).__name__)}"
            )
    return {str(name): tensor.detach() for name, tensor in state.items()}


def check_complete(state: Path, names: Collection[str]) -> None:
    """EncoderError where an index lists a tensor that its shards do not hold."""
    for name, file in weight_map(state).items() if is_index(state) else ():
        if name not in names:
            raise EncoderError(f"{state}: lists {name} in {file}, which does not hold it")


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


def _folder(choice: EncoderChoice, *, whole: bool) -> Path:
    if choice.weights is not None and is_remote(choice.weights):
        return local_folder(choice.weights, whole=whole)
    folder = Path(choice.weights).expanduser() if choice.weights else SHIPPED / choice.name
    if not (folder / CONFIG).is_file():
        raise EncoderError(f"encoder {choice.name}: no {CONFIG} in {folder}{_advice(choice)}")
    if manifest := folder_manifest(folder):
        check_sizes(folder, manifest)
    return folder


def _advice(choice: EncoderChoice) -> str:
    if choice.weights is not None:
        return ""
    pull = f", or run `isoformer weights pull {choice.name}`"
    can_be_pulled = choice.name in PUBLISHED or choice.name.startswith(HUGGING_FACE)
    return f"; this encoder comes without weights: give `weights`, a folder{pull if can_be_pulled else ''}"


def _article(word: str) -> str:
    return f"an {word}" if word[0].lower() in "aeiou" else f"a {word}"


def _few(names: list[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
