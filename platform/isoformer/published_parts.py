"""Which tensor of the published IsoFormer checkpoint belongs to which encoder, and what config.json it needs.

An encoder is found by a tensor that only it has, so that the name of the attribute that holds it does not
matter: Enformer by its stem, the other two by their word embeddings, told apart by their vocabularies (4,107
tokens: Nucleotide Transformer v2; 33: ESM-2). Everything under the same prefix goes with it. Sizes are read
from shapes; what no shape tells (heads, where no rotary table was saved) is taken from the published model of
that width and depth. Called by `published_checkpoint.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from isoformer.encoders.catalogue import PUBLISHED
from isoformer.errors import EncoderError
from isoformer.schema import Modality

ENCODERS: Final[Mapping[Modality, str]] = {"dna": "enformer", "rna": "ntv2-rna", "protein": "esm2"}
"""The registry's name for each modality's encoder."""
MAX_TOKENS: Final = 2048
"""Of RNA and protein: paper, section 4.1."""
TARGET_LENGTH: Final = 896

_STEM: Final = "stem.0.weight"
_EMBEDDING: Final = "embeddings.word_embeddings.weight"
_VOCABULARIES: Final[Mapping[int, Modality]] = {4107: "rna", 33: "protein"}
_TRUNK: Final = {"1": "stem", "2": "conv_tower", "4": "transformer", "6": "final_pointwise"}
_OF_VOCABULARY: Final[Mapping[Modality, Mapping[str, Any]]] = {
    "rna": {"layer_norm_eps": 1e-12, "mask_token_id": 2, "token_dropout": False},
    "protein": {"layer_norm_eps": 1e-5, "mask_token_id": 32, "token_dropout": True},
}


@dataclass(frozen=True)
class EncoderPart:
    """One encoder of the checkpoint: its tensors under its family's names, its config.json and width."""

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    width: int


def take_encoders(state: dict[str, Tensor], *, file: Path) -> dict[Modality, EncoderPart]:
    """The three encoders, their tensors taken out of `state`. EncoderError where one is not there."""
    parts: dict[Modality, EncoderPart] = {"dna": _take_enformer(state, file)}
    for name in [name for name in state if name.endswith(f".{_EMBEDDING}")]:
        vocabulary = state[name].shape[0]
        modality = _VOCABULARIES.get(vocabulary)
        if modality is None or modality in parts:
            allowed = ", ".join(f"{size} ({modality})" for size, modality in _VOCABULARIES.items())
            raise EncoderError(f"{file}: {name} has {vocabulary} tokens; must be, each once: {allowed}")
        parts[modality] = _take_transformer(state, name, modality, file)
    if absent := [modality for modality in _VOCABULARIES.values() if modality not in parts]:
        raise EncoderError(f"{file}: no {' and no '.join(absent)} encoder: no further tensor …{_EMBEDDING}")
    return parts


def _take_enformer(state: dict[str, Tensor], file: Path) -> EncoderPart:
    """enformer-pytorch registers the trunk twice; the numbered copy is dropped where it is the same."""
    stems = [name for name in state if name.endswith((f".{_STEM}", "._trunk.1.0.weight"))]
    roots = {name.removesuffix(_STEM).removesuffix("_trunk.1.0.weight") for name in stems}
    if len(roots) != 1:
        raise EncoderError(f"{file}: must hold one Enformer (a tensor …{_STEM}), got {len(roots)}")
    root = roots.pop()
    tensors: dict[str, Tensor] = {}
    for name, tensor in _take(state, root).items():
        plain = re.sub(r"^_trunk\.(\d+)\.", lambda found: f"{_TRUNK.get(found[1], found[0])}.", name)
        if not torch.equal(tensors.setdefault(plain, tensor), tensor):
            raise EncoderError(f"{file}: {root}: the two copies of {plain} differ")
    return EncoderPart(tensors, _enformer_config(tensors, file), 4 * tensors[_STEM].shape[0])


def _enformer_config(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Any]:
    bias = _needed(tensors, "transformer.0.0.fn.1.rel_content_bias", file)
    towers = _count(tensors, "conv_tower")
    widths = [_needed(tensors, f"conv_tower.{tower}.0.2.weight", file).shape[0] for tower in range(towers)]
    heads = {name.split(".")[1]: len(tensor) for name, tensor in tensors.items() if _is_track_head(name)}
    return {
        "model_type": "enformer",
        "dim": 2 * tensors[_STEM].shape[0],
        "depth": _count(tensors, "transformer"),
        "heads": bias.shape[1],
        "attn_dim_key": bias.shape[3],
        "num_downsamples": towers + 1,
        "dim_divisible_by": math.gcd(*widths),
        "target_length": TARGET_LENGTH,
        "output_heads": heads,
        "use_tf_gamma": False,
    }


def _is_track_head(name: str) -> bool:
    return re.fullmatch(r"_heads\.\w+\.0\.weight", name) is not None


def _take_transformer(
    state: dict[str, Tensor], embedding: str, modality: Modality, file: Path
) -> EncoderPart:
    """A trunk, and the language-model head beside it, which the family leaves out when it loads."""
    trunk = embedding.removesuffix(_EMBEDDING)
    head = f"{trunk.removesuffix('esm.')}lm_head."
    tensors = {f"esm.{name}": tensor for name, tensor in _take(state, trunk).items()}
    tensors |= {f"lm_head.{name}": tensor for name, tensor in _take(state, head).items()}
    config = _transformer_config(tensors, modality, file)
    return EncoderPart(tensors, config, config["hidden_size"])


def _transformer_config(tensors: Mapping[str, Tensor], modality: Modality, file: Path) -> dict[str, Any]:
    vocabulary, width = tensors[f"esm.{_EMBEDDING}"].shape
    inner = _needed(tensors, "esm.encoder.layer.0.intermediate.dense.weight", file).shape[0]
    layers = _count(tensors, "esm.encoder.layer")
    return {
        "model_type": "esm",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": _heads(tensors, width, layers, file),
        "intermediate_size": inner // 2 if modality == "rna" else inner,
        "max_position_embeddings": MAX_TOKENS,
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "pad_token_id": 1,
        **_OF_VOCABULARY[modality],
    }


def _heads(tensors: Mapping[str, Tensor], width: int, layers: int, file: Path) -> int:
    """From the rotary table (one frequency to two features of a head), else the published model's."""
    table = tensors.get("esm.encoder.layer.0.attention.self.rotary_embeddings.inv_freq")
    if table is not None:
        return width // (2 * len(table))
    for published in PUBLISHED.values():
        sizes = published.config.get("hidden_size"), published.config.get("num_hidden_layers")
        if sizes == (width, layers):
            return int(published.config["num_attention_heads"])
    raise EncoderError(
        f"{file}: nothing tells the heads of the encoder of width {width} and {layers} layers: no tensor "
        "…rotary_embeddings.inv_freq, and no published encoder has these sizes"
    )


def _take(state: dict[str, Tensor], root: str) -> dict[str, Tensor]:
    return {name.removeprefix(root): state.pop(name) for name in [n for n in state if n.startswith(root)]}


def _count(tensors: Mapping[str, Tensor], stack: str) -> int:
    """How many numbered blocks a stack has; a gap is found by the family that loads them."""
    found = (re.match(rf"{re.escape(stack)}\.(\d+)\.", name) for name in tensors)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _needed(tensors: Mapping[str, Tensor], name: str, file: Path) -> Tensor:
    if name not in tensors:
        raise EncoderError(f"{file}: the weights do not fit: missing: …{name}")
    return tensors[name]
