"""RNA-FM's published tensors, in either of their layouts, into a `PackedTransformer`.

Layouts, told apart by the names in the file:

    authors'       layers.0.self_attn.q_proj …, maybe behind `encoder.` or `sentence_encoder.`; 25 tokens.
                   Their file is a training checkpoint: the tensors are its `model`, the settings its `args`.
    conversion's   encoder.layer.0.attention.self.query …, behind `model.` or, formerly, `rnafm.`; 28 tokens,
                   until May 2026 26. The same tokens by other numbers: rows are put into the authors' order.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from torch import Tensor

from isoformer.encoders.packed_transformer import PackedTransformer, filled_transformer
from isoformer.encoders.transformer_config import TransformerConfig
from isoformer.encoders.weights_files import plain_tensors, read_tensors, state_file, stored_content
from isoformer.errors import EncoderError

TOKENS: Final = (
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *"ACGURYKMSWBDHVN-",
    *("<null>",) * 4,
    "<mask>",
)
"""The authors'."""
_CONVERSIONS_TOKENS: Final = ("<pad>", "<cls>", "<eos>", "<unk>", "<mask>", "<null>", *"ACGUNRYSWKMBDHV")
_GAP_ROW: Final = {26: 24, 28: 26}
"""By the conversion's number of tokens: which one is the gap. Those before are the same in both."""

_WORDS: Final = "embeddings.word_embeddings.weight"
_HEADS: Final = ("lm_head.", "contact_head.", "ss_head.", "pooler.")
_AUTHORS_NAMES: Final = (
    (r"^(encoder\.|sentence_encoder\.)+", ""),
    (r"^embed_tokens\.", "embeddings.word_embeddings."),
    (r"^embed_positions\.", "embeddings.position_embeddings."),
    (r"^emb_layer_norm_before\.", "embeddings.layer_norm."),
    (r"^emb_layer_norm_after\.", "encoder.emb_layer_norm_after."),
    (r"^layers\.", "encoder.layer."),
    (r"\.self_attn\.q_proj\.", ".attention.self.query."),
    (r"\.self_attn\.k_proj\.", ".attention.self.key."),
    (r"\.self_attn\.v_proj\.", ".attention.self.value."),
    (r"\.self_attn\.out_proj\.", ".attention.output.dense."),
    (r"\.self_attn_layer_norm\.", ".attention.LayerNorm."),
    (r"\.final_layer_norm\.", ".LayerNorm."),
    (r"\.fc1\.", ".intermediate.dense."),
    (r"\.fc2\.", ".output.dense."),
)
_CONVERSIONS_NAMES: Final = (
    (r"^(model|rnafm)\.", ""),
    (r"^encoder\.layer_norm\.", "encoder.emb_layer_norm_after."),
    (r"^(encoder\.layer\.\d+\.(?:attention\.)?)layer_norm\.", r"\1LayerNorm."),
)


def load_rnafm(config: TransformerConfig, path: Path) -> PackedTransformer:
    """`path`: a folder, or the authors' file. EncoderError for tensors that do not fit."""
    file = state_file(path) if path.is_dir() else path
    state = read_tensors(file) if path.is_dir() else _checkpoint(config, file)
    is_authors = any(name.endswith("embed_tokens.weight") for name in state)
    state = _renamed(state, _AUTHORS_NAMES if is_authors else _CONVERSIONS_NAMES)
    if not is_authors and _WORDS in state:
        state[_WORDS] = _in_authors_order(state[_WORDS], file)
    return filled_transformer(config, state, file=file)


def _checkpoint(config: TransformerConfig, file: Path) -> dict[str, Tensor]:
    """The tensors of the authors' file, or of one that holds nothing else."""
    content = stored_content(file, classes=[Namespace])
    if isinstance(content, dict) and "model" in content:
        _check_settings(config, content.get("args"), file)
        content = content["model"]
    return {name: tensor.float() for name, tensor in plain_tensors(content, file).items()}


def _check_settings(config: TransformerConfig, settings: object, file: Path) -> None:
    """EncoderError where the file says that it was trained otherwise in what no tensor shows."""
    stated = vars(settings) if isinstance(settings, Namespace) else {}
    stated = {name.removeprefix("encoder_"): value for name, value in stated.items()}
    for name, must_be in (
        ("token_dropout", config.token_dropout),
        ("attention_heads", config.num_attention_heads),
    ):
        if (got := stated.get(name, must_be)) != must_be:
            raise EncoderError(f"{file}: args.{name} must be {must_be!r}, got {got!r}")


def _renamed(state: Mapping[str, Tensor], names: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """The trunk's tensors under the names that `PackedTransformer` has."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        if not name.startswith(_HEADS):
            renamed[name] = tensor
    return renamed


def _in_authors_order(rows_VD: Tensor, file: Path) -> Tensor:
    if len(rows_VD) not in _GAP_ROW:
        allowed = " or ".join(map(str, _GAP_ROW))
        raise EncoderError(f"{file}: {_WORDS} must have {allowed} rows, has {len(rows_VD)}")
    row_of = {token: row for row, token in enumerate(_CONVERSIONS_TOKENS)} | {"-": _GAP_ROW[len(rows_VD)]}
    return rows_VD[[row_of[token] for token in TOKENS]]
