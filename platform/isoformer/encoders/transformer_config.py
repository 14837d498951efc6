"""Sizes of an ESM-like encoder, read from the published `config.json`. Needs no torch.

ESM-2, Nucleotide Transformer v1 and v2 and RNA-FM are one design: pre-norm blocks and a final layer norm.
They differ in positions (rotary; learned), in the feed-forward (GELU with biases; gated SiLU without), in a
layer norm after the embedding, in the vocabulary and in the token-dropout scaling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from isoformer.config import FrozenConfig, build
from isoformer.errors import ConfigError, EncoderError

_ROTARY_BASE: Final = 10000.0
LARGEST: Final = 1 << 24
"""Of any size; the largest published encoder has a thousandth of it."""


class TransformerConfig(FrozenConfig):
    """Field names are those of the published config.json files."""

    vocab_size: int = Field(ge=1, le=LARGEST)
    hidden_size: int = Field(ge=2, le=LARGEST)
    num_hidden_layers: int = Field(ge=1, le=LARGEST)
    num_attention_heads: int = Field(ge=1, le=LARGEST)
    intermediate_size: int = Field(ge=1, le=LARGEST)
    max_position_embeddings: int = Field(ge=2, le=LARGEST)
    layer_norm_eps: float = Field(gt=0)
    mask_token_id: int
    pad_token_id: int = 1
    position_embedding_type: Literal["rotary", "absolute"] = "rotary"
    emb_layer_norm_before: bool = False
    token_dropout: bool = False
    gated_feed_forward: bool = False

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> TransformerConfig:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError("hidden_size must be a multiple of twice num_attention_heads")
        return self

    @property
    def most_tokens(self) -> int:
        """Of one sequence, special tokens included. Learned positions start at `pad_token_id` + 1."""
        learned = self.position_embedding_type == "absolute"
        return self.max_position_embeddings - (self.pad_token_id + 1 if learned else 0)

    @property
    def parameter_count(self) -> int:
        """Of the trunk.

        Embedding, layers and final norm; the language-model head is not part of an encoder.
        """
        width = self.hidden_size
        rows = self.vocab_size
        if self.position_embedding_type == "absolute":
            rows += self.max_position_embeddings
        norms = 4 * width if self.emb_layer_norm_before else 2 * width
        return rows * width + self.num_hidden_layers * self._layer_parameters + norms

    @property
    def flops_per_token(self) -> float:
        """2 for each weight of the layers; attention's share, which grows with length, is left out."""
        return 2.0 * self.num_hidden_layers * self._layer_parameters

    @property
    def flops_per_token_pair(self) -> float:
        """Of all layers: a score and a weighted sum, 2 products of `hidden_size` values, a pair."""
        return 4.0 * self.num_hidden_layers * self.hidden_size

    def attention_flops(self, length_tokens: int) -> float:
        """Of all layers for one sequence."""
        return self.flops_per_token_pair * length_tokens**2

    @property
    def _layer_parameters(self) -> int:
        width, inner = self.hidden_size, self.intermediate_size
        feed_forward = 3 * width * inner if self.gated_feed_forward else 2 * width * inner + inner + width
        return 4 * (width * width + width) + feed_forward + 4 * width


def transformer_config(
    published: Mapping[str, Any], *, gated_feed_forward: bool, file: str
) -> TransformerConfig:
    """The sizes in a published config.json's fields. EncoderError for a variant that this design lacks."""
    theta = published.get("rope_theta") or _ROTARY_BASE
    if theta != _ROTARY_BASE:
        raise EncoderError(f"{file}: rope_theta must be {_ROTARY_BASE}, got {theta!r}")
    fields = {
        name: published[name] for name in TransformerConfig.model_fields if published.get(name) is not None
    }
    try:
        return build(TransformerConfig, {**fields, "gated_feed_forward": gated_feed_forward})
    except ConfigError as error:
        raise EncoderError(f"{file}: {error}") from None
