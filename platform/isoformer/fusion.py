"""Fusions: from one token sequence a modality to the token sequences that are pooled for the head.

A fusion takes `{modality: Tokens}` and gives a list of `Tokens` whose widths it states in `widths`;
`model.py` takes the masked mean of each, concatenates them and puts one linear head on top. A modality that a
sample lacks has no true entry in `is_token_BL`, and a fusion must give that sample what it would give had the
modality never been there.

    cross_attention    the paper's: successive cross-attentions with residuals, nothing else (the default);
                       with `queries: [dna]` that of the published checkpoint
    concat             no exchange: each modality's own mean (a linear probe when the head is linear)
    perceiver_shared   all tokens projected to one width, read by a few learned latents (a paper ablation)
    perceiver_per_modality   each modality read by its own latents, which then attend across (an ablation)
    c_abstractor       each modality convolved and mean-pooled to M tokens, which then attend across (a paper
                       ablation); tokens must be in their order along the sequence

Shapes: B samples, L tokens, S context tokens, H heads, D width, M latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from einops import rearrange, repeat
from torch import Tensor, nn

from isoformer.errors import ConfigError
from isoformer.schema import MODALITIES, Modality

MASKED_SCORE: Final = -1e30
"""Added to the attention score of a position that is not a token, as the published unit does."""


@dataclass(frozen=True)
class Tokens:
    """Hidden states of one modality, padded to the longest sample; `is_token_BL` is false on padding."""

    hidden_BLD: Tensor
    is_token_BL: Tensor

    def to(self, device: torch.device) -> Tokens:
        return Tokens(self.hidden_BLD.to(device), self.is_token_BL.to(device))

    @property
    def is_present(self) -> Tensor:
        """Whether the sample has this modality at all."""
        return self.is_token_BL.any(dim=1)


@dataclass(frozen=True)
class FusionOptions:
    """What a fusion may be told: heads of each attention, stacked blocks, learned latents, who asks."""

    heads: int = 8
    blocks: int = 1
    latents: int = 16
    queries: tuple[Modality, ...] | None = None


class Fusion(Protocol):
    """One contract for all: widths of what comes out, and the exchange itself."""

    widths: tuple[int, ...]

    def __call__(self, inputs: Mapping[Modality, Tokens]) -> list[Tokens]: ...


def build_fusion(name: str, widths: Mapping[Modality, int], options: FusionOptions) -> Fusion:
    """The fusion of that name over modalities of these widths. ConfigError where they do not go together."""
    if name not in FUSIONS:
        raise ConfigError(f"model.fusion: unknown fusion {name!r}; allowed: {', '.join(sorted(FUSIONS))}")
    ordered = {modality: widths[modality] for modality in MODALITIES if modality in widths}
    return FUSIONS[name](ordered, options)


def masked_mean(tokens: Tokens) -> Tensor:
    """Mean over a sample's tokens, (B, D); zeros where the sample lacks the modality. Padding never
    counts.
    """
    weight_BL1 = tokens.is_token_BL.unsqueeze(-1).to(tokens.hidden_BLD.dtype)
    count_B1 = weight_BL1.sum(dim=1)
    return (tokens.hidden_BLD * weight_BL1).sum(dim=1) / count_B1.clamp(min=1)


class CrossAttention(nn.Module):
    """One published unit: a modality asks another, and adds the answer to itself.

    `query: D→S-width`, `key, value: S-width→S-width`, `dense: S-width→D`, all with bias; scores scaled by
    head_width^-0.5; no normalisation, dropout or feed-forward. A sample without the context keeps its states
    as they are.
    """

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        _check_heads(heads, context_width)
        self.heads = heads
        self.query = nn.Linear(width, context_width)
        self.key = nn.Linear(context_width, context_width)
        self.value = nn.Linear(context_width, context_width)
        self.dense = nn.Linear(context_width, width)

    def forward(self, tokens: Tokens, context: Tokens) -> Tokens:
        attended_BLD = _attend(
            self.query(tokens.hidden_BLD),
            self.key(context.hidden_BLD),
            self.value(context.hidden_BLD),
            context.is_token_BL,
            self.heads,
        )
        is_absent_B11 = rearrange(~context.is_present, "b -> b 1 1")
        term_BLD = self.dense(attended_BLD).masked_fill(is_absent_B11, 0.0)
        return Tokens(tokens.hidden_BLD + term_BLD, tokens.is_token_BL)


class CrossAttentionFusion(nn.Module):
    """h'_dna = f(h_dna, h_rna, h_protein), h'_rna = f(h_rna, h_dna, h_protein), h'_protein = f(h_protein,
    h_dna, h_rna).

    f attends to the one, then, with what that gave, to the other. Blocks are stacked: all modalities of a
    block read the states that the block before left. Where `queries` names some modalities only, the others
    are read as they came and do not come out.
    """

    def __init__(self, widths: Mapping[Modality, int], options: FusionOptions) -> None:
        super().__init__()
        self.queries = tuple(m for m in widths if options.queries is None or m in options.queries)
        self.widths = tuple(widths[modality] for modality in self.queries)
        self.blocks = nn.ModuleList(
            _cross_attention_block(widths, self.queries, options.heads) for _ in range(options.blocks)
        )

    def forward(self, inputs: Mapping[Modality, Tokens]) -> list[Tokens]:
        states = dict(inputs)
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            states = {**states, **{asking: _successive(block, asking, states) for asking in self.queries}}
        return [states[modality] for modality in self.queries]


class ConcatFusion(nn.Module):
    """No exchange between modalities: each is pooled as it came."""

    def __init__(self, widths: Mapping[Modality, int], options: FusionOptions) -> None:
        super().__init__()
        self.widths = tuple(widths.values())

    def forward(self, inputs: Mapping[Modality, Tokens]) -> list[Tokens]:
        return list(inputs.values())


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


def adaptive_mean(tokens: Tokens, count: int) -> Tokens:
    """`count` means over a sample's own positions, (B, count, D): the m-th of L positions is over
    [floor(m·L / count), ceil((m+1)·L / count)), as `torch.nn.AdaptiveAvgPool1d` has it. Tokens must come
    first, padding last; zeros for a sample without any.
    """
    length_B11 = rearrange(tokens.is_token_BL.sum(dim=1), "b -> b 1 1")
    slot_M1 = rearrange(torch.arange(count, device=length_B11.device), "m -> m 1")
    position_L = torch.arange(tokens.is_token_BL.shape[1], device=length_B11.device)
    start_BM1 = (slot_M1 * length_B11) // count
    end_BM1 = -((-(slot_M1 + 1) * length_B11) // count)
    is_in_BML = (position_L >= start_BM1) & (position_L < end_BM1)
    weight_BML = is_in_BML.to(tokens.hidden_BLD.dtype) / (end_BM1 - start_BM1).clamp(min=1)
    is_token_BM = repeat(tokens.is_present, "b -> b m", m=count)
    return Tokens(weight_BML @ tokens.hidden_BLD, is_token_BM)


def _along(convolution: nn.Module, hidden_BLD: Tensor) -> Tensor:
    return rearrange(convolution(rearrange(hidden_BLD, "b l d -> b d l")), "b d l -> b l d")


class _ResamplerBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        _check_heads(heads, width)
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
        attended_BMD = _attend(
            self.query(normed_BMD), self.key(both_BSD), self.value(both_BSD), is_token_BS, self.heads
        )
        answered_BMD = latents_BMD + self.dense(attended_BMD)
        return answered_BMD + self.feed_forward(answered_BMD)


FUSIONS: Final[dict[str, Callable[[Mapping[Modality, int], FusionOptions], Fusion]]] = {
    "cross_attention": CrossAttentionFusion,
    "concat": ConcatFusion,
    "perceiver_shared": PerceiverSharedFusion,
    "perceiver_per_modality": PerceiverPerModalityFusion,
    "c_abstractor": CAbstractorFusion,
}


def _cross_attention_block(
    widths: Mapping[Modality, int], queries: tuple[Modality, ...], heads: int
) -> nn.ModuleDict:
    units: dict[str, nn.Module] = {
        asking: nn.ModuleDict(
            {
                other: CrossAttention(widths[asking], widths[other], heads)
                for other in widths
                if other != asking
            }
        )
        for asking in queries
    }
    return nn.ModuleDict(units)


def _successive(block: nn.ModuleDict, modality: Modality, states: Mapping[Modality, Tokens]) -> Tokens:
    tokens = states[modality]
    for other, unit in block[modality].items():  # type: ignore[operator]
        tokens = unit(tokens, states[other])
    return tokens


def _attend(query_BLD: Tensor, key_BSD: Tensor, value_BSD: Tensor, is_token_BS: Tensor, heads: int) -> Tensor:
    """softmax(q·k / sqrt(head width) + mask) · v a head; float mask of -1e30, so that no row can become
    NaN.
    """
    query, key, value = (
        rearrange(x, "b l (h d) -> b h l d", h=heads) for x in (query_BLD, key_BSD, value_BSD)
    )
    mask_B11S = torch.zeros(is_token_BS.shape, dtype=query.dtype, device=query.device)
    mask_B11S = rearrange(mask_B11S.masked_fill(~is_token_BS, MASKED_SCORE), "b s -> b 1 1 s")
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_B11S)
    return rearrange(attended, "b h l d -> b l (h d)")


def _check_heads(heads: int, width: int) -> None:
    if heads < 1 or width % heads:
        raise ConfigError(f"model.heads: {heads} heads do not divide the width {width} that they attend in")
