"""The paper's fusion: successive cross-attentions between the token sequences of the modalities.

What the paper does not have, and other attention blocks do, can be switched on: norms in front, dropout on
what is added, a feed-forward behind.

Shapes: B samples, L tokens, S context tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from einops import rearrange
from torch import nn

from isoformer.schema import Modality
from isoformer.tokens import Tokens, attend, check_heads


@dataclass(frozen=True)
class FusionOptions:
    """What a fusion may be told: heads of each attention, stacked blocks, learned latents, who asks; and of
    each cross-attention unit: layer norms in front, dropout on what is added, the feed-forward's inner width
    as a multiple (0: none).
    """

    heads: int = 8
    blocks: int = 1
    latents: int = 16
    queries: tuple[Modality, ...] | None = None
    pre_norm: bool = False
    dropout: float = 0.0
    feed_forward: int = 0


class CrossAttention(nn.Module):
    """One published unit: a modality asks another, and adds the answer to itself.

    `query: D→S-width`, `key, value: S-width→S-width`, `dense: S-width→D`, all with bias; scores scaled by
    head_width^-0.5; by default no normalisation, dropout or feed-forward. A sample without the context keeps
    its states as they are.
    """

    def __init__(self, width: int, context_width: int, options: FusionOptions) -> None:
        super().__init__()
        check_heads(options.heads, context_width)
        self.heads = options.heads
        self.query = nn.Linear(width, context_width)
        self.key = nn.Linear(context_width, context_width)
        self.value = nn.Linear(context_width, context_width)
        self.dense = nn.Linear(context_width, width)
        self.norm_tokens = nn.LayerNorm(width) if options.pre_norm else nn.Identity()
        self.norm_context = nn.LayerNorm(context_width) if options.pre_norm else nn.Identity()
        self.dropout = nn.Dropout(options.dropout)
        self.feed_forward = _feed_forward(width, options) if options.feed_forward else None

    def forward(self, tokens: Tokens, context: Tokens) -> Tokens:
        context_BSD = self.norm_context(context.hidden_BLD)
        attended_BLD = attend(
            self.query(self.norm_tokens(tokens.hidden_BLD)),
            self.key(context_BSD),
            self.value(context_BSD),
            context.is_token_BL,
            self.heads,
        )
        term_BLD = self.dropout(self.dense(attended_BLD))
        if self.feed_forward is not None:
            term_BLD = term_BLD + self.feed_forward(tokens.hidden_BLD + term_BLD)
        is_absent_B11 = rearrange(~context.is_present, "b -> b 1 1")
        return Tokens(tokens.hidden_BLD + term_BLD.masked_fill(is_absent_B11, 0.0), tokens.is_token_BL)

    def start_at_zero(self) -> None:
        """Set what the unit adds to zero, whatever is asked."""
        ends = [self.dense] if self.feed_forward is None else [self.dense, self.feed_forward[-2]]
        for linear in ends:
            nn.init.zeros_(linear.weight)  # type: ignore[arg-type]
            nn.init.zeros_(linear.bias)  # type: ignore[arg-type]


def _feed_forward(width: int, options: FusionOptions) -> nn.Sequential:
    inner = options.feed_forward * width
    norm = nn.LayerNorm(width) if options.pre_norm else nn.Identity()
    linears = (nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
    return nn.Sequential(norm, *linears, nn.Dropout(options.dropout))


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
            _cross_attention_block(widths, self.queries, options) for _ in range(options.blocks)
        )

    def forward(self, inputs: Mapping[Modality, Tokens]) -> list[Tokens]:
        states = dict(inputs)
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            states = {**states, **{asking: _successive(block, asking, states) for asking in self.queries}}
        return [states[modality] for modality in self.queries]


def _cross_attention_block(
    widths: Mapping[Modality, int], queries: tuple[Modality, ...], options: FusionOptions
) -> nn.ModuleDict:
    units: dict[str, nn.Module] = {
        asking: nn.ModuleDict(
            {
                other: CrossAttention(widths[asking], widths[other], options)
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
