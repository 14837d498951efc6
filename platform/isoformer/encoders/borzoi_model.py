"""Borzoi's and Flashzoi's network under its published names: convolutions down, transformer, U-net back up.

In: letters as columns (B, 4, bases). Out: (B, bins, dim), a bin being 32 bases. See `borzoi.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from isoformer.encoders.borzoi import (
    DISTANCE_FEATURES,
    ROTARY_WIDTH,
    SEPARABLE_KERNEL,
    STEM_KERNEL,
    TOWER_KERNEL,
    WIDTHS,
    BorzoiConfig,
)
from isoformer.encoders.convolutional_trunk import (
    Layout,
    RelativeAttention,
    WindowEncoder,
    cropped,
    load_window_encoder,
    transformer,
    with_sign,
)
from isoformer.encoders.registry import EncoderChoice
from isoformer.encoders.spec import EncoderSpec

# B sequences, C channels, L positions, D width, H heads, G heads of keys, E width of a head, R distances,
# F features

_NORM_EPS = 1e-3
_ROTARY_BASE = 20_000.0
_HEADS = Layout(unused=("final_joined_convs.", "human_head.", "mouse_head."))


class BorzoiModel(nn.Module):
    """The trunk up to the crop."""

    def __init__(self, config: BorzoiConfig) -> None:
        super().__init__()
        dim, deepest = config.dim, WIDTHS[-1]
        self.bins = config.bins
        self.conv_dna = nn.ModuleDict({"conv_layer": nn.Conv1d(4, WIDTHS[0], STEM_KERNEL, padding="same")})
        tower: list[nn.Module] = []
        for inputs, outputs in pairwise(WIDTHS):
            tower += [ConvBlock(inputs, outputs, TOWER_KERNEL), nn.MaxPool1d(2)]
        self.res_tower = nn.Sequential(*tower[:-1])
        self.unet1 = nn.Sequential(nn.MaxPool1d(2), ConvBlock(deepest, dim, TOWER_KERNEL))
        self.horizontal_conv0, self.horizontal_conv1 = ConvBlock(deepest, dim), ConvBlock(dim, dim)
        self.transformer = transformer(config.depth, dim, _NORM_EPS, _attention(config))
        self.upsampling_unet1 = nn.Sequential(ConvBlock(dim, dim), nn.Upsample(scale_factor=2))
        self.separable1 = SeparableConv(dim)
        self.upsampling_unet0 = nn.Sequential(ConvBlock(dim, dim), nn.Upsample(scale_factor=2))
        self.separable0 = SeparableConv(dim)

    def forward(self, letters_BCL: Tensor) -> Tensor:
        stem_BCL = functional.max_pool1d(self.conv_dna["conv_layer"](letters_BCL), 2)
        bins32_BCL = self.res_tower(stem_BCL)
        bins64_BCL = self.unet1(bins32_BCL)
        attended_BLD = self.transformer(functional.max_pool1d(bins64_BCL, 2).transpose(1, 2))
        up64_BCL = self.upsampling_unet1(attended_BLD.transpose(1, 2)) + self.horizontal_conv1(bins64_BCL)
        up32_BCL = self.upsampling_unet0(self.separable1(up64_BCL)) + self.horizontal_conv0(bins32_BCL)
        return cropped(self.separable0(up32_BCL).transpose(1, 2), self.bins)


class ConvBlock(nn.Module):
    """Norm, GELU (tanh approximation), convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(inputs, eps=_NORM_EPS)
        self.conv_layer = nn.Conv1d(inputs, outputs, kernel, padding="same")

    def forward(self, hidden_BCL: Tensor) -> Tensor:
        return self.conv_layer(functional.gelu(self.norm(hidden_BCL), approximate="tanh"))


class SeparableConv(nn.Module):
    """A convolution of each channel by itself, then one across channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_layer = nn.Sequential(
            nn.Conv1d(dim, dim, SEPARABLE_KERNEL, groups=dim, padding="same", bias=False),
            nn.Conv1d(dim, dim, 1),
        )

    def forward(self, hidden_BCL: Tensor) -> Tensor:
        return self.conv_layer(hidden_BCL)


class RotaryAttention(nn.Module):
    """Attention of H heads over H / 2 heads of keys and values, rotary in the first 128 values of a head.

    The parts of `Wqkv` are all queries, then all keys, then all values; neighbouring heads share a key.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mha = nn.ModuleDict({"Wqkv": nn.Linear(dim, 2 * dim), "out_proj": nn.Linear(dim, dim)})

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        length, width = hidden_BLD.shape[1:]
        rotary = _rotary_tables(length, hidden_BLD.device)
        parts = self.mha["Wqkv"](hidden_BLD).split((width, width // 2, width // 2), dim=-1)
        query_BHLE, key_BGLE, value_BGLE = (
            rearrange(part, "b l (h e) -> b h l e", e=width // self.heads) for part in parts
        )
        key_BHLE, value_BHLE = (
            part.repeat_interleave(2, dim=1) for part in (_rotated(key_BGLE, rotary), value_BGLE)
        )
        mixed_BHLE = functional.scaled_dot_product_attention(
            _rotated(query_BHLE, rotary), key_BHLE, value_BHLE
        )
        return self.mha["out_proj"](rearrange(mixed_BHLE, "b h l e -> b l (h e)"))


def load_borzoi(
    choice: EncoderChoice, spec: EncoderSpec, config: BorzoiConfig, *, device: str, trainable: bool = False
) -> WindowEncoder:
    """The encoder with the folder's weights, or random ones. EncoderError where a tensor does not fit."""
    return load_window_encoder(
        choice, spec, lambda: BorzoiModel(config), layout=_HEADS, device=device, trainable=trainable
    )


def distance_features(length: int) -> Tensor:
    """(2L - 1, F): whether distances 1 - L … L - 1 are below each of 16 widths, and the same with sign."""
    distances_R = torch.arange(1 - length, length)
    each = DISTANCE_FEATURES // 2
    growth = math.exp(math.log(length + 1) / each)
    widths_F = torch.pow(growth, torch.arange(1, each + 1)).float() - 1
    return with_sign((widths_F > distances_R.abs()[:, None]).float(), distances_R)


def _attention(config: BorzoiConfig) -> Callable[[], nn.Module]:
    if config.flashed:
        return partial(RotaryAttention, config.dim, config.heads)
    return partial(
        RelativeAttention,
        config.dim,
        config.heads,
        key=config.attn_dim_key,
        value=config.attn_dim_value,
        features_RF=distance_features(config.positions),
    )


def _rotary_tables(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (L, 128) of each position's angles, each angle twice; float32 at any precision."""
    exponents = torch.arange(0, ROTARY_WIDTH, 2, dtype=torch.float32, device=device) / ROTARY_WIDTH
    positions_L = torch.arange(length, dtype=torch.float32, device=device)
    angles_LE = torch.outer(positions_L, 1.0 / _ROTARY_BASE**exponents).repeat(1, 2)
    return angles_LE.cos(), angles_LE.sin()


def _rotated(states_BHLE: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """The first 128 values of each head turned by the position's angles, the rest as they are."""
    cosine_LE, sine_LE = rotary
    turned, rest = states_BHLE[..., :ROTARY_WIDTH], states_BHLE[..., ROTARY_WIDTH:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cosine_LE + torch.cat([-second, first], dim=-1) * sine_LE
    return torch.cat([turned.to(rest.dtype), rest], dim=-1)
