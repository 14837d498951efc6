"""Fusions: from one token sequence a modality to the token sequences that are pooled for the head.

A fusion takes `{modality: Tokens}` and gives a list of `Tokens` whose widths it states in `widths`;
`model.py` takes the masked mean of each, concatenates them and puts one linear head on top. A modality that a
sample lacks has no true entry in `is_token_BL`, and a fusion must give that sample what it would give had the
modality never been there.

    cross_attention    the paper's: successive cross-attentions with residuals, nothing else (the default);
                       with `queries: [dna]` that of the published checkpoint
    concat             no exchange: each modality's own mean (a linear probe when the head is linear)
    perceiver_shared   all tokens projected to one width, read by a few learned latents (a paper ablation)

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
