"""The paper's fusion: successive cross-attentions between the token sequences of the modalities.

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
    """What a fusion may be told: heads of each attention, stacked blocks, learned latents, who asks."""

    heads: int = 8
    blocks: int = 1
    latents: int = 16
    queries: tuple[Modality, ...] | None = None


class CrossAttention(nn.Module):
    """One published unit: a modality asks another, and adds the answer to itself.

    `query: D→S-width`, `key, value: S-width→S-width`, `dense: S-width→D`, all with bias; scores scaled by
    head_width^-0.5; no normalisation, dropout or feed-forward. A sample without the context keeps its states
    as they are.
    """

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        check_heads(heads, context_width)
        self.heads = heads
        self.query = nn.Linear(width, context_width)
        self.key = nn.Linear(context_width, context_width)
        self.value = nn.Linear(context_width, context_width)
        self.dense = nn.Linear(context_width, width)

    def forward(self, tokens: Tokens, context: Tokens) -> Tokens:
        attended_BLD = attend(
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
