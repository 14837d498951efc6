"""Enformer (Avsec et al. 2021, Nature Methods 18:1196): convolutions and attention over genomic tracks.

In: exactly 196,608 bases, half of them upstream of the TSS. Out: 896 positions of 128 bases, the middle of
1,536, each the 3,072 values that the published heads read (`return_only_embeddings` of the package
enformer-pytorch). The weights are a folder in that package's layout, as EleutherAI/enformer-official-rough:
`config.json` and `model.safetensors` or `pytorch_model.bin`. The network was trained on measured tracks, CAGE
among them, perhaps of the very genes it is asked about: `supervised`.

As in the package: a letter that is not A C G T is a column of zeros; batch norms use their running
statistics; attention pooling weighs each pair of positions by a softmax, channel by channel; distances enter
attention as 192 features (exponentials, central masks and gamma densities, with and without the distance's
sign).

Of the package's two sets of gamma densities, `use_tf_gamma: false` is the one here: the default of a
config.json, and what IsoFormer was trained with. The other is a table that TensorFlow computed in float32.
Recomputing it gives values up to 0.002 apart, so `use_tf_gamma: true` is refused. (The package's function
`from_pretrained` switches the table on for the official weights; `Enformer.from_pretrained` does not.)
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final

from pydantic import Field, model_validator

from isoformer.encoders.fixed_window import (
    Product,
    Trunk,
    WindowConfig,
    WindowTokenizer,
    relative_attention_products,
    transformer_products,
    window_config,
    window_spec,
)
from isoformer.encoders.registry import EncoderChoice
from isoformer.encoders.spec import Encoder, EncoderSpec
from isoformer.encoders.weights_files import folder_digest

OPTIONS: Final = frozenset({"precision"})
TRAINABLE: Final = True
CODE_VERSION: Final = 1
STEM_KERNEL, TOWER_KERNEL = 15, 5
FEATURE_CLASSES: Final = 6
"""Exponential, central mask, gamma; each with and without the distance's sign."""


class EnformerConfig(WindowConfig):
    """Field names and defaults are those of the package's config.json files."""

    sequence_bases: int = Field(default=196_608, ge=16, multiple_of=8)
    dim: int = Field(default=1536, ge=2, multiple_of=2)
    depth: int = Field(default=11, ge=1)
    heads: int = Field(default=8, ge=1)
    target_length: int = Field(default=896, ge=1)
    attn_dim_key: int = Field(default=64, ge=1)
    num_downsamples: int = Field(default=7, ge=3)
    dim_divisible_by: int = Field(default=128, ge=1)
    use_tf_gamma: bool = False

    @model_validator(mode="after")
    def _sizes_fit(self) -> EnformerConfig:
        if self.use_tf_gamma:
            raise ValueError(
                "use_tf_gamma must be false: the table of gamma densities that TensorFlow computed "
                "cannot be recomputed exactly (up to 0.002 apart)"
            )
        if self.dim % (FEATURE_CLASSES * self.heads) or self.dim % self.dim_divisible_by:
            raise ValueError(
                f"dim must be a multiple of {FEATURE_CLASSES} times heads, and of dim_divisible_by"
            )
        if self.sequence_bases % 2**self.num_downsamples or self.positions < 2:
            raise ValueError("sequence_bases must be a multiple, two or more, of 2 to the num_downsamples")
        if self.target_length > self.positions or (self.positions - self.target_length) % 2:
            raise ValueError(f"target_length must leave an even number of the {self.positions} positions")
        return self

    @property
    def positions(self) -> int:
        """That attention sees."""
        return self.sequence_bases // 2**self.num_downsamples

    @property
    def widths(self) -> list[int]:
        """Channels of the stem, then of every block of the tower: even steps on a logarithmic scale."""
        half, steps = self.dim // 2, self.num_downsamples - 2
        growth = math.exp(math.log(self.dim / half) / steps)
        unit = self.dim_divisible_by
        return [half, *(round(half * growth**step / unit) * unit for step in range(steps + 1))]


def get_spec(choice: EncoderChoice) -> EncoderSpec:
    config = _config(choice)
    trunk = Trunk(
        family="enformer",
        code_version=CODE_VERSION,
        width=2 * config.dim,
        output="trunk, after the final pointwise convolution and GELU",
        products=_products(config),
        other_parameters=_other_parameters(config),
    )
    return window_spec(choice, config, trunk)


def load_tokenizer(choice: EncoderChoice) -> WindowTokenizer:
    return WindowTokenizer(choice.name, _config(choice).sequence_bases)


def load_encoder(choice: EncoderChoice, device: str, *, trainable: bool = False) -> Encoder:
    from isoformer.encoders.enformer_model import load_enformer

    return load_enformer(choice, get_spec(choice), _config(choice), device=device, trainable=trainable)


def weights_digest(choice: EncoderChoice) -> str:
    return folder_digest(choice)


def _products(config: EnformerConfig) -> list[Product]:
    """Every matrix product of one window."""
    rows, widths, positions = config.sequence_bases, config.widths, config.positions
    products = [Product(4 * STEM_KERNEL, widths[0], rows), *_block_end(widths[0], rows)]
    for inputs, outputs in pairwise(widths):
        rows //= 2
        products += [Product(TOWER_KERNEL * inputs, outputs, rows), *_block_end(outputs, rows)]
    head = config.dim // config.heads
    attention = relative_attention_products(
        positions, config.dim, config.heads, key=config.attn_dim_key, value=head, features=head
    )
    products += transformer_products(positions, config.dim, config.depth, attention)
    return [*products, Product(widths[-1], 2 * config.dim, config.target_length)]


def _block_end(width: int, rows: int) -> list[Product]:
    """The residual convolution, and the pooling's weights: one product for each pair of positions."""
    return [Product(width, width, rows), Product(width, width, rows // 2, bias=False)]


def _other_parameters(config: EnformerConfig) -> int:
    """Of norms (a scale and a shift each) and of attention's two position biases."""
    widths = config.widths
    batch_norms = 2 * (widths[0] + sum(widths[:-1]) + sum(widths[1:]) + widths[-1])
    return batch_norms + config.depth * (4 * config.dim + 2 * config.heads * config.attn_dim_key)


def _config(choice: EncoderChoice) -> EnformerConfig:
    return window_config(choice, EnformerConfig, model_type="enformer")
