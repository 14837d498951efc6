"""Enformer's network under its published names: stem, convolutional tower, transformer, pointwise layer.

In: letters as columns (B, 4, bases). Out: (B, target_length, 2 × dim). See `enformer.py`.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from isoformer.encoders.convolutional_trunk import (
    Layout,
    RelativeAttention,
    Residual,
    WindowEncoder,
    cropped,
    load_window_encoder,
    transformer,
    with_sign,
)
from isoformer.encoders.enformer import FEATURE_CLASSES, STEM_KERNEL, TOWER_KERNEL, EnformerConfig
from isoformer.encoders.registry import EncoderChoice
from isoformer.encoders.spec import EncoderSpec

# B sequences, C channels, L positions, D width, R distances, F features

_SAME_TENSORS: Final = {
    "_trunk.1.": "stem.",
    "_trunk.2.": "conv_tower.",
    "_trunk.4.": "transformer.",
    "_trunk.6.": "final_pointwise.",
}
"""The package registers its parts twice, so that a file may hold either name of a tensor, or both."""
_SMALLEST_HALF_LIFE: Final = 3.0  # log2 of positions
_GAMMA_FLOOR: Final = 1e-8


class EnformerModel(nn.Module):
    """The trunk."""

    def __init__(self, config: EnformerConfig) -> None:
        super().__init__()
        widths, dim = config.widths, config.dim
        self.target_length = config.target_length
        self.stem = nn.Sequential(
            nn.Conv1d(4, widths[0], STEM_KERNEL, padding="same"),
            Residual(_conv_block(widths[0], widths[0])),
            AttentionPool(widths[0]),
        )
        self.conv_tower = nn.Sequential(
            *(
                nn.Sequential(
                    _conv_block(inputs, outputs, TOWER_KERNEL),
                    Residual(_conv_block(outputs, outputs)),
                    AttentionPool(outputs),
                )
                for inputs, outputs in pairwise(widths)
            )
        )
        head = dim // config.heads
        features_RF = distance_features(config.positions, head)
        self.transformer = transformer(
            config.depth,
            dim,
            1e-5,
            lambda: RelativeAttention(
                dim, config.heads, key=config.attn_dim_key, value=head, features_RF=features_RF
            ),
        )
        self.final_pointwise = nn.Sequential(nn.Identity(), _conv_block(widths[-1], 2 * dim))

    def forward(self, letters_BCL: Tensor) -> Tensor:
        hidden_BCL = self.conv_tower(self.stem(letters_BCL))
        hidden_BLD = cropped(self.transformer(hidden_BCL.transpose(1, 2)), self.target_length)
        return _gelu(self.final_pointwise(hidden_BLD.transpose(1, 2))).transpose(1, 2)


class Gelu(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return _gelu(hidden)


class AttentionPool(nn.Module):
    """Each pair of positions becomes one, weighted by a softmax over the pair, channel by channel.

    A softmax over two is a sigmoid of the difference, and the difference of two products is one product.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_attn_logits = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, hidden_BCL: Tensor) -> Tensor:
        first_BCL, second_BCL = rearrange(hidden_BCL, "b c (l pair) -> pair b c l", pair=2)
        difference_BCL = first_BCL - second_BCL
        logits_BCL = functional.conv1d(difference_BCL, self.to_attn_logits.weight.squeeze(-1))
        return second_BCL + difference_BCL * torch.sigmoid(logits_BCL)


def load_enformer(
    choice: EncoderChoice, spec: EncoderSpec, config: EnformerConfig, *, device: str, trainable: bool = False
) -> WindowEncoder:
    """The encoder with the folder's weights, or random ones. EncoderError where a tensor does not fit."""
    return load_window_encoder(
        choice,
        spec,
        lambda: EnformerModel(config),
        layout=Layout(unused=("_heads.",), renamed=_SAME_TENSORS),
        device=device,
        trainable=trainable,
    )


def distance_features(length: int, features: int) -> Tensor:
    """(2L - 1, F): what attention knows of the distances 1 - L … L - 1, in float32 on the CPU.

    The gamma densities are exponentials of differences of large numbers: other arithmetic moves them.
    """
    distances_R = torch.arange(1 - length, length)
    size_R1 = distances_R.abs()[:, None].float()
    each = features // FEATURE_CLASSES
    parts = [_exponential(size_R1, each, length), _central_mask(size_R1, each), _gamma(size_R1, each, length)]
    return with_sign(torch.cat(parts, dim=-1), distances_R)


def _exponential(size_R1: Tensor, features: int, length: int) -> Tensor:
    """Decays with half-lives from 8 positions to the length."""
    half_lives_F = 2 ** torch.linspace(_SMALLEST_HALF_LIFE, math.log2(length), features)
    return torch.exp(-math.log(2.0) / half_lives_F * size_R1)


def _central_mask(size_R1: Tensor, features: int) -> Tensor:
    """Whether the distance is below 1, 3, 7, 15, …"""
    widths_F = 2.0 ** torch.arange(1, features + 1) - 1
    return (widths_F > size_R1).float()


def _gamma(size_R1: Tensor, features: int, length: int) -> Tensor:
    """Gamma densities with means spread evenly over the length, relative to the largest at that distance."""
    deviation = length / (2 * features)
    means_F = torch.linspace(length / features, length, features)
    shapes_F, rates_F = (means_F / deviation) ** 2, means_F / deviation**2
    log_density_RF = torch.xlogy(shapes_F - 1.0, size_R1) - rates_F * size_R1
    log_norm_F = torch.lgamma(shapes_F) - shapes_F * torch.log(rates_F)
    density_RF = torch.exp(log_density_RF - log_norm_F) + _GAMMA_FLOOR
    return density_RF / density_RF.amax(dim=-1, keepdim=True)


def _conv_block(inputs: int, outputs: int, kernel: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm1d(inputs), Gelu(), nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2)
    )


def _gelu(hidden: Tensor) -> Tensor:
    """The published approximation, x · sigmoid(1.702 x)."""
    return torch.sigmoid(1.702 * hidden) * hidden
