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
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from torch import nn

from isoformer.abstractors import CAbstractorFusion, PerceiverPerModalityFusion, PerceiverSharedFusion
from isoformer.cross_attention import CrossAttention, CrossAttentionFusion, FusionOptions
from isoformer.errors import ConfigError
from isoformer.schema import MODALITIES, Modality
from isoformer.tokens import Tokens, adaptive_mean, masked_mean

__all__ = [
    "FUSIONS",
    "CAbstractorFusion",
    "CrossAttention",
    "CrossAttentionFusion",
    "Fusion",
    "FusionOptions",
    "Tokens",
    "adaptive_mean",
    "build_fusion",
    "masked_mean",
]


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


class ConcatFusion(nn.Module):
    """No exchange between modalities: each is pooled as it came."""

    def __init__(self, widths: Mapping[Modality, int], options: FusionOptions) -> None:
        super().__init__()
        self.widths = tuple(widths.values())

    def forward(self, inputs: Mapping[Modality, Tokens]) -> list[Tokens]:
        return list(inputs.values())


FUSIONS: Final[dict[str, Callable[[Mapping[Modality, int], FusionOptions], Fusion]]] = {
    "cross_attention": CrossAttentionFusion,
    "concat": ConcatFusion,
    "perceiver_shared": PerceiverSharedFusion,
    "perceiver_per_modality": PerceiverPerModalityFusion,
    "c_abstractor": CAbstractorFusion,
}
