"""`hf:<repository or folder>`: any encoder that transformers loads with its own code. Needs no torch.

In: a folder with `config.json`, safetensors and a tokenizer (a repository is pulled into the root first); the
modality is the user's to say. Honest limits:

- nothing of the folder's own code is run, and no pickle is opened;
- an encoder-decoder gives its encoder's states; a decoder alone is refused, since its states look back only;
- sequences of equal length share a batch and nothing is padded, so that a vector never feels its neighbours:
  exact, but slower than the packed families;
- long sequences are cropped, not cut into windows;
- all of the model's layers are run, whichever of its states is asked for;
- parity with the library is by construction: it is the library's own forward pass.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from isoformer.encoders.huggingface_tokenizer import LibraryTokenizer, read_tokenizer, tokenizer_digest
from isoformer.encoders.letters import CROP_POLICY
from isoformer.encoders.registry import HUGGING_FACE, EncoderChoice
from isoformer.encoders.spec import Encoder, EncoderSpec
from isoformer.encoders.weights_files import (
    config_folder,
    folder_digest,
    origin,
    read_config,
    state_file,
    weights_folder,
)
from isoformer.encoders.weights_manifest import read_json
from isoformer.errors import ConfigError, EncoderError, shortened
from isoformer.schema import Modality

OPTIONS: Final = frozenset(
    {"modality", "layer", "average_layers", "max_tokens", "long_sequences", "precision"}
)
CODE_VERSION: Final = 1

_WIDTH: Final = ("hidden_size", "d_model", "n_embd", "dim")
_LAYERS: Final = ("num_hidden_layers", "encoder_layers", "num_layers", "n_layers", "n_layer")
_INNER: Final = ("intermediate_size", "d_ff", "encoder_ffn_dim", "hidden_dim")
_POSITIONS: Final = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
_OFFSET_POSITIONS: Final = frozenset({"roberta", "xlm-roberta", "camembert", "longformer", "mpnet", "esm"})
"""Model types whose first position has the number of the pad token plus one."""
_RELATIVE_POSITIONS: Final = frozenset({"t5", "mt5", "umt5"})
_BUILT_IN: Final[Mapping[str, str]] = {
    "esm": "esm2, ntv1-…, ntv2-…",
    "enformer": "enformer",
    "borzoi": "borzoi, flashzoi",
    "rnafm": "rnafm",
}
_DECODERS: Final = ("ForCausalLM", "LMHeadModel", "DoubleHeadsModel")
_NOT_IDENTITY: Final = frozenset(
    {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"}
)


def get_spec(choice: EncoderChoice) -> EncoderSpec:
    folder, config = _opened(choice)
    source, revision = origin(_in_folder(choice))
    tokenizer = load_tokenizer(choice)
    width, layers = _size(config, _WIDTH, folder), _size(config, _LAYERS, folder)
    states = _states(choice, layers)
    before, after = tokenizer.vocabulary.before, tokenizer.vocabulary.after
    reach = int((tokenizer.max_tokens - len(before) - len(after)) * tokenizer.letters_per_token)
    return EncoderSpec(
        name=f"hf-{_short_name(choice)}",
        family=f"transformers: {config['model_type']}",
        modality=tokenizer.modality,
        width=width,
        max_tokens=tokenizer.max_tokens,
        letters_per_token=tokenizer.letters_per_token,
        licence="as published: see the repository's card",
        trained="pre-trained" if choice.random_seed is None else "random",
        source=source,
        identity={
            "code": CODE_VERSION,
            "config": _config_digest(config),
            "tokenizer": tokenizer_digest(folder),
            "writing": vars(tokenizer.writing),
            "layer": choice.layer,
            "average_layers": choice.average_layers,
            "crop": tokenizer.long_sequences,
            "precision": choice.precision,
        },
        parameter_count=_parameter_count(config, width, layers),
        window_bases=(reach // 2, reach - reach // 2) if tokenizer.modality == "dna" else None,
        layers=layers,
        hidden_states=states,
        has_cls=bool(before),
        hub=_repository(choice),
        revision=revision,
        flops_per_token_pair=4.0 * layers * width,
    )


def load_tokenizer(choice: EncoderChoice) -> LibraryTokenizer:
    folder, config = _opened(choice)
    modality = _modality(choice)
    if choice.long_sequences == "windows":
        raise ConfigError(f"encoder {choice.name}: long_sequences may be left, right or center, not windows")
    return read_tokenizer(
        folder,
        modality,
        max_tokens=_max_tokens(choice, config, folder),
        long_sequences=choice.long_sequences or CROP_POLICY[modality],
    )


def load_encoder(choice: EncoderChoice, device: str) -> Encoder:
    from isoformer.encoders.huggingface_model import load_library_encoder

    folder, _ = _opened(choice)
    if choice.random_seed is None:
        folder = weights_folder(_in_folder(choice))
        if not (file := state_file(folder)).name.startswith("model.safetensors"):
            raise EncoderError(f"{file}: hf: reads safetensors alone; isoformer weights pull converts")
    return load_library_encoder(
        choice, get_spec(choice), load_tokenizer(choice), folder, weights_digest(choice), device
    )


def weights_digest(choice: EncoderChoice) -> str:
    return folder_digest(_in_folder(choice))


def _opened(choice: EncoderChoice) -> tuple[Path, dict[str, Any]]:
    """The folder and its config.json, once nothing in it needs to be refused."""
    folder = config_folder(_in_folder(choice))
    config = read_config(folder)
    model_type = config.get("model_type", "")
    if not isinstance(model_type, str):
        raise EncoderError(
            f"{folder / 'config.json'}: model_type must be a name, got {shortened(model_type)}"
        )
    if not _is_native(model_type):
        raise EncoderError(_refusal(folder, model_type, config))
    if config.get("is_decoder") or any(name.endswith(_DECODERS) for name in _architectures(config, folder)):
        raise EncoderError(f"{folder}: a {model_type} that decodes is no encoder: its states look back only")
    return folder, config


def _architectures(config: Mapping[str, Any], folder: Path) -> list[str]:
    named = config.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise EncoderError(f"{folder / 'config.json'}: architectures must be names, got {shortened(named)}")
    return named


def _in_folder(choice: EncoderChoice) -> EncoderChoice:
    """With the folder that the name may be as `weights`; the caller has found a repository's in the root."""
    folder = Path(choice.name.removeprefix(HUGGING_FACE)).expanduser()
    if choice.weights is not None or not (folder / "config.json").is_file():
        return choice
    return choice.edited(weights=str(folder))


def _is_native(model_type: str) -> bool:
    """Whether transformers has code for it; looked up without importing torch."""
    module = re.sub(r"\W", "_", model_type)
    return bool(module) and importlib.util.find_spec(f"transformers.models.{module}") is not None


def _refusal(folder: Path, model_type: str, config: Mapping[str, Any]) -> str:
    why = (
        "it needs its repository's own code (auto_map), which is never run; " if "auto_map" in config else ""
    )
    built_in = f"; built in here: {_BUILT_IN[model_type]}" if model_type in _BUILT_IN else ""
    return f"{folder}: {why}transformers has no model of type {model_type!r}{built_in}"


def _modality(choice: EncoderChoice) -> Modality:
    if choice.modality is None:
        raise ConfigError(f"encoder {choice.name}: give its modality: dna, rna or protein")
    return choice.modality


def _max_tokens(choice: EncoderChoice, config: Mapping[str, Any], folder: Path) -> int:
    """The lesser of the model's positions and the tokenizer's own limit; what the user asks, within that."""
    model_type = config["model_type"]
    limits = [_whole(config, name, folder / "config.json") for name in _POSITIONS if config.get(name)][:1]
    if limits and model_type in _OFFSET_POSITIONS:
        padding = config.get("pad_token_id")
        limits[0] -= (padding if isinstance(padding, int) else 0) + 1
    settings = folder / "tokenizer_config.json"
    if settings.is_file() and (tokenizer := read_json(settings)).get("model_max_length"):
        limits += [_whole(tokenizer, "model_max_length", settings)]
    most = min(limits, default=10**9)
    if most < 1:
        raise EncoderError(f"{folder}: its config and tokenizer leave no position for a token")
    if choice.max_tokens is not None and (choice.max_tokens <= most or model_type in _RELATIVE_POSITIONS):
        return choice.max_tokens
    if choice.max_tokens is not None:
        raise ConfigError(f"encoder {choice.name}: max_tokens {choice.max_tokens} is over the model's {most}")
    if most >= 10**9:
        raise ConfigError(
            f"encoder {choice.name}: neither config nor tokenizer states a limit: give max_tokens"
        )
    return most


def _whole(settings: Mapping[str, Any], name: str, file: Path) -> int:
    """A limit, which a library may write as a float where there is none."""
    value = settings[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < math.inf:
        raise EncoderError(f"{file}: {name} must be a number of at least 1, got {shortened(value)}")
    return int(value)


def _size(config: Mapping[str, Any], names: tuple[str, ...], folder: Path) -> int:
    for name in names:
        if isinstance(config.get(name), int):
            return _whole(config, name, folder / "config.json")
    raise EncoderError(f"{folder / 'config.json'}: none of the fields {', '.join(names)}")


def _states(choice: EncoderChoice, layers: int) -> tuple[int, ...]:
    """The hidden states whose mean is asked for. ConfigError where there is no such state."""
    last = choice.layer if choice.layer >= 0 else layers + 1 + choice.layer
    if not (0 <= last <= layers and choice.average_layers <= last + 1):
        raise ConfigError(
            f"encoder {choice.name}: layer {choice.layer} with average_layers {choice.average_layers} is not "
            f"there; it has {layers + 1} hidden states: 0 (the embedding's output) to {layers}"
        )
    return tuple(range(last + 1 - choice.average_layers, last + 1))


def _parameter_count(config: Mapping[str, Any], width: int, layers: int) -> int:
    """An estimate for costs: embedding, four projections and two feed-forward matrices a layer."""
    inner = next((config[name] for name in _INNER if isinstance(config.get(name), int)), 4 * width)
    words = config.get("vocab_size")
    rows = words if isinstance(words, int) else 0
    return rows * width + layers * (4 * width * width + 2 * width * inner)


def _config_digest(config: Mapping[str, Any]) -> str:
    kept = {name: value for name, value in config.items() if name not in _NOT_IDENTITY}
    return hashlib.blake2b(json.dumps(kept, sort_keys=True).encode(), digest_size=16).hexdigest()


def _short_name(choice: EncoderChoice) -> str:
    """The last part of repository or folder, in letters that a key may have."""
    return re.sub(r"[^\w-]", "-", Path(choice.name.removeprefix(HUGGING_FACE)).name)


def _repository(choice: EncoderChoice) -> str:
    named = choice.name.removeprefix(HUGGING_FACE)
    return "" if Path(named).expanduser().is_dir() else named
