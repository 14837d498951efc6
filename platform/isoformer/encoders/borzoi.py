"""Borzoi (Linder et al. 2025, Nature Genetics 57:949) and Flashzoi (Hingerl et al. 2025, Bioinformatics
41:btaf467): convolutions, attention and a way back up to 32 bases, over RNA-seq and other tracks.

In: exactly 524,288 bases, half of them upstream of the TSS. Out: the middle 6,144 of 16,384 positions of 32
bases (`bins_to_return`; 16,352 where `return_center_bins_only` is false), each of 1,536 values: what
`get_embs_after_crop` of the package borzoi-pytorch gives. That is before `final_joined_convs`, the pointwise
layer of 1,920 values which belongs to the published heads and is left out with them. The weights are a folder
in that package's layout, as johahi/borzoi-replicate-0 or johahi/flashzoi-replicate-0; the other replicates
have it too. The networks were trained on measured tracks, RNA-seq among them, perhaps of the very genes they
are asked about: `supervised`.

A letter that is not A C G T is a column of zeros, as in the authors' own data (the package takes columns and
does not say). As in the package: batch norms use their running statistics; Borzoi's attention knows distances
by 32 central masks; Flashzoi (`flashed: true`) turns the first 128 values of each head instead (rotary, base
20,000) and shares each key and value between two heads. Flashzoi's published code runs on CUDA in half
precision alone; here it is the same arithmetic in any precision on any device.
"""

from __future__ import annotations

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
from isoformer.errors import EncoderError

OPTIONS: Final = frozenset({"precision"})
TRAINABLE: Final = True
CODE_VERSION: Final = 1
STEM_KERNEL, TOWER_KERNEL, SEPARABLE_KERNEL = 15, 5, 3
WIDTHS: Final = (512, 608, 736, 896, 1056, 1280)
"""Channels of the stem, then of every block of the tower: fixed in the package."""
DISTANCE_FEATURES: Final = 32
ROTARY_WIDTH: Final = 128
BASES_PER_BIN, BASES_PER_POSITION = 32, 128
_EDGE_BINS: Final = 32
"""Left out on both sides together where the center is not asked for."""


class BorzoiConfig(WindowConfig):
    """Field names and defaults are those of the package's config.json files."""

    sequence_bases: int = Field(default=524_288, ge=2 * BASES_PER_POSITION, multiple_of=BASES_PER_POSITION)
    dim: int = Field(default=1536, ge=1)
    depth: int = Field(default=8, ge=1)
    heads: int = Field(default=8, ge=1)
    return_center_bins_only: bool = True
    bins_to_return: int = Field(default=6144, ge=1)
    attn_dim_key: int = Field(default=64, ge=1)
    attn_dim_value: int = Field(default=192, ge=1)
    flashed: bool = False

    @model_validator(mode="after")
    def _sizes_fit(self) -> BorzoiConfig:
        bins = self.sequence_bases // BASES_PER_BIN
        if not 1 <= self.bins <= bins or (bins - self.bins) % 2:
            raise ValueError(f"bins_to_return must leave an even number of the {bins} bins")
        if self.flashed and (
            self.dim % self.heads or self.heads % 2 or self.dim // self.heads < ROTARY_WIDTH
        ):
            raise ValueError(f"heads must be even and divide dim into {ROTARY_WIDTH} or more")
        return self

    @property
    def bins(self) -> int:
        """Positions that are returned."""
        every = self.sequence_bases // BASES_PER_BIN
        return self.bins_to_return if self.return_center_bins_only else every - _EDGE_BINS

    @property
    def positions(self) -> int:
        """That attention sees."""
        return self.sequence_bases // BASES_PER_POSITION


def get_spec(choice: EncoderChoice) -> EncoderSpec:
    config = _config(choice)
    trunk = Trunk(
        family="borzoi",
        code_version=CODE_VERSION,
        width=config.dim,
        output="after the crop, before the final joined convolutions",
        products=_products(config),
        other_parameters=_other_parameters(config),
    )
    return window_spec(choice, config, trunk)


def load_tokenizer(choice: EncoderChoice) -> WindowTokenizer:
    return WindowTokenizer(choice.name, _config(choice).sequence_bases)


def load_encoder(choice: EncoderChoice, device: str, *, trainable: bool = False) -> Encoder:
    from isoformer.encoders.borzoi_model import load_borzoi

    return load_borzoi(choice, get_spec(choice), _config(choice), device=device, trainable=trainable)


def weights_digest(choice: EncoderChoice) -> str:
    return folder_digest(choice)


def _products(config: BorzoiConfig) -> list[Product]:
    """Every matrix product of one window."""
    rows, dim = config.sequence_bases, config.dim
    products = [Product(4 * STEM_KERNEL, WIDTHS[0], rows)]
    for inputs, outputs in pairwise((*WIDTHS, dim)):
        rows //= 2
        products.append(Product(TOWER_KERNEL * inputs, outputs, rows))
    products += [Product(WIDTHS[-1], dim, 2 * rows), Product(dim, dim, rows)]
    positions = config.positions
    products += transformer_products(positions, dim, config.depth, _attention_products(config))
    for rows in (positions, 2 * positions):
        products += [
            Product(dim, dim, rows),
            Product(SEPARABLE_KERNEL, dim, 2 * rows, bias=False),
            Product(dim, dim, 2 * rows),
        ]
    return products


def _attention_products(config: BorzoiConfig) -> list[Product]:
    """Of one layer."""
    positions, dim, heads = config.positions, config.dim, config.heads
    if not config.flashed:
        return relative_attention_products(
            positions,
            dim,
            heads,
            key=config.attn_dim_key,
            value=config.attn_dim_value,
            features=DISTANCE_FEATURES,
        )
    return [
        Product(dim, 2 * dim, positions),
        Product(dim // heads, positions, heads * positions, weights=False),
        Product(positions, dim // heads, heads * positions, weights=False),
        Product(dim, dim, positions),
    ]


def _other_parameters(config: BorzoiConfig) -> int:
    """Of norms (a scale and a shift each) and of attention's two position biases."""
    dim = config.dim
    batch_norms = 2 * (sum(WIDTHS) + WIDTHS[-1] + 3 * dim)
    position_biases = 0 if config.flashed else 2 * config.heads * config.attn_dim_key
    return batch_norms + config.depth * (4 * dim + position_biases)


def _config(choice: EncoderChoice) -> BorzoiConfig:
    config = window_config(choice, BorzoiConfig, model_type="borzoi")
    if config.flashed != (choice.name == "flashzoi"):
        named = "flashzoi" if config.flashed else "borzoi"
        raise EncoderError(
            f"{choice.weights}: flashed is {config.flashed} in config.json: that encoder is {named}, "
            f"not {choice.name}"
        )
    return config
