"""The paper's ablations of its fusion: token sequences first become a few learned or averaged tokens.

Shapes: B samples, L tokens, S context tokens, D width, M latents.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from einops import rearrange, repeat
from torch import Tensor, nn

from isoformer.cross_attention import CrossAttentionFusion, FusionOptions
from isoformer.schema import Modality
from isoformer.tokens import Tokens, adaptive_mean, attend, check_heads


class PerceiverSharedFusion(nn.Module):
    """One resampler over all modalities: tokens at one width, marked by modality, read by M learned latents.

    Pre-norm, keys and values from tokens and latents together, as the sibling model's resampler has it. The
    latent count of the paper's ablation is not published, so it is configuration.
    """

    def __init__(self, widths: Mapping[Modality, int], options: FusionOptions) -> None:
        super().__init__()
        width = min(widths.values())
        self.widths: tuple[int, ...] = (width,)
        self.project = nn.ModuleDict({modality: nn.Linear(own, width) for modality, own in widths.items()})
        self.modality_mark = nn.ParameterDict({m: nn.Parameter(torch.zeros(width)) for m in widths})
        self.latents_MD = nn.Parameter(torch.randn(options.latents, width) * width**-0.5)
        self.blocks = nn.ModuleList(_ResamplerBlock(width, options.heads) for _ in range(options.blocks))

    def forward(self, inputs: Mapping[Modality, Tokens]) -> list[Tokens]:
        marked = [self.project[m](tokens.hidden_BLD) + self.modality_mark[m] for m, tokens in inputs.items()]
        is_token_BS = torch.cat([tokens.is_token_BL for tokens in inputs.values()], dim=1)
        context = Tokens(torch.cat(marked, dim=1), is_token_BS)
        latents_BMD = repeat(self.latents_MD, "m d -> b m d", b=len(is_token_BS))
        for block in self.blocks:
            latents_BMD = block(latents_BMD, context)
        return [
            Tokens(
                latents_BMD, torch.ones(latents_BMD.shape[:2], dtype=torch.bool, device=latents_BMD.device)
            )
        ]


class PerceiverPerModalityFusion(nn.Module):
    """A resampler a modality, at its own width, then cross-attention between the M latents of each.

    The paper's first ablation. A sample that lacks a modality has no latents of it.
    """

    def __init__(self, widths: Mapping[Modality, int], options: FusionOptions) -> None:
        super().__init__()
        self.resamplers = nn.ModuleDict({m: _Resampler(width, options) for m, width in widths.items()})
        self.exchange = CrossAttentionFusion(widths, options)
        self.widths = self.exchange.widths

    def forward(self, inputs: Mapping[Modality, Tokens]) -> list[Tokens]:
        return self.exchange({m: self.resamplers[m](tokens) for m, tokens in inputs.items()})


class CAbstractorFusion(nn.Module):
    """A C-Abstractor a modality (Honeybee, arXiv 2312.06742, in one dimension: residual convolutions, an
    adaptive mean over positions, residual convolutions), then cross-attention between the M tokens of each.

    Kernel 3 and one residual unit on either side; the paper gives neither.
    """

    def __init__(self, widths: Mapping[Modality, int], options: FusionOptions) -> None:
        super().__init__()
        self.abstractors = nn.ModuleDict({m: _CAbstractor(w, options.latents) for m, w in widths.items()})
        self.exchange = CrossAttentionFusion(widths, options)
        self.widths = self.exchange.widths

    def forward(self, inputs: Mapping[Modality, Tokens]) -> list[Tokens]:
        return self.exchange({m: self.abstractors[m](tokens) for m, tokens in inputs.items()})


class _Resampler(nn.Module):
    def __init__(self, width: int, options: FusionOptions) -> None:
        super().__init__()
        self.latents_MD = nn.Parameter(torch.randn(options.latents, width) * width**-0.5)
        self.blocks = nn.ModuleList(_ResamplerBlock(width, options.heads) for _ in range(options.blocks))

    def forward(self, tokens: Tokens) -> Tokens:
        latents_BMD = repeat(self.latents_MD, "m d -> b m d", b=len(tokens.is_token_BL))
        for block in self.blocks:
            latents_BMD = block(latents_BMD, tokens)
        return Tokens(latents_BMD, repeat(tokens.is_present, "b -> b m", m=len(self.latents_MD)))


class _ResamplerBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        check_heads(heads, width)
        self.heads = heads
        self.norm_tokens, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dense = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, latents_BMD: Tensor, context: Tokens) -> Tensor:
        normed_BMD = self.norm_latents(latents_BMD)
        both_BSD = torch.cat([self.norm_tokens(context.hidden_BLD), normed_BMD], dim=1)
        always_BM = torch.ones(normed_BMD.shape[:2], dtype=torch.bool, device=normed_BMD.device)
        is_token_BS = torch.cat([context.is_token_BL, always_BM], dim=1)
        attended_BMD = attend(
            self.query(normed_BMD), self.key(both_BSD), self.value(both_BSD), is_token_BS, self.heads
        )
        answered_BMD = latents_BMD + self.dense(attended_BMD)
        return answered_BMD + self.feed_forward(answered_BMD)


class _CAbstractor(nn.Module):
    def __init__(self, width: int, latents: int) -> None:
        super().__init__()
        self.latents = latents
        self.before, self.after = _ResidualConvolution(width), _ResidualConvolution(width)

    def forward(self, tokens: Tokens) -> Tokens:
        return self.after(adaptive_mean(self.before(tokens), self.latents))


class _ResidualConvolution(nn.Module):
    """x + conv(gelu(conv(norm(x)))), zero outside the sample's own tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.second = (nn.Conv1d(width, width, kernel_size=3, padding=1) for _ in range(2))

    def forward(self, tokens: Tokens) -> Tokens:
        is_padding_BL1 = rearrange(~tokens.is_token_BL, "b l -> b l 1")
        hidden_BLD = self.norm(tokens.hidden_BLD).masked_fill(is_padding_BL1, 0.0)
        hidden_BLD = F.gelu(_along(self.first, hidden_BLD)).masked_fill(is_padding_BL1, 0.0)
        return Tokens(tokens.hidden_BLD + _along(self.second, hidden_BLD), tokens.is_token_BL)


def _along(convolution: nn.Module, hidden_BLD: Tensor) -> Tensor:
    return rearrange(convolution(rearrange(hidden_BLD, "b l d -> b d l")), "b d l -> b l d")
