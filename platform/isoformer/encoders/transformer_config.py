"""Sizes of a rotary encoder-only transformer, read from the published `config.json`. Needs no torch.

ESM-2 and Nucleotide Transformer v2 are one design: pre-norm blocks, rotary positions, a final layer norm.
They differ in the feed-forward (GELU with biases; gated SiLU without), the vocabulary and the token-dropout
scaling.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from isoformer.config import FrozenConfig, build
from isoformer.encoders.weights_files import read_config
from isoformer.errors import ConfigError, EncoderError


class TransformerConfig(FrozenConfig):
    """Field names are those of the published config.json files."""

    vocab_size: int = Field(ge=1)
    hidden_size: int = Field(ge=2)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    max_position_embeddings: int = Field(ge=2)
    layer_norm_eps: float = Field(gt=0)
    mask_token_id: int
    token_dropout: bool = False
    gated_feed_forward: bool = False

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> TransformerConfig:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError("hidden_size must be a multiple of twice num_attention_heads")
        return self

    @property
    def parameter_count(self) -> int:
        """Of the trunk.

        Embedding, layers and final norm; the language-model head is not part of an encoder.
        """
        width, inner = self.hidden_size, self.intermediate_size
        feed_forward = 3 * width * inner if self.gated_feed_forward else 2 * width * inner + inner + width
        layer = 4 * (width * width + width) + feed_forward + 4 * width
        return self.vocab_size * width + self.num_hidden_layers * layer + 2 * width


def read_transformer_config(folder: Path, *, gated_feed_forward: bool) -> TransformerConfig:
    """The sizes in a folder's config.json. EncoderError for a variant that this design does not cover."""
    published = read_config(folder)
    fields = {name: published[name] for name in TransformerConfig.model_fields if name in published}
    _refuse_other_variants(published, folder / "config.json")
    try:
        return build(TransformerConfig, {**fields, "gated_feed_forward": gated_feed_forward})
    except ConfigError as error:
        raise EncoderError(f"{folder / 'config.json'}: {error}") from None


def _refuse_other_variants(published: Mapping[str, Any], file: Path) -> None:
    must_be: dict[str, Any] = {
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "rope_theta": 10000.0,
    }
    for name, value in must_be.items():
        if (got := published.get(name, value)) not in (value, None):
            raise EncoderError(f"{file}: {name} must be {value!r}, got {got!r}")
