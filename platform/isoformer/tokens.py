"""Padded token sequences, and what is computed over them such that padding never counts: the masked mean, the
mean of slots along a sequence, masked attention.

Shapes: B samples, L tokens (at least 1), S context tokens, H heads, D width, M slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812
from einops import rearrange, repeat
from torch import Tensor

from isoformer.errors import ConfigError

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


def masked_mean(tokens: Tokens) -> Tensor:
    """Mean over a sample's tokens, (B, D); zeros where the sample lacks the modality. Padding never
    counts.
    """
    weight_BL1 = tokens.is_token_BL.unsqueeze(-1).to(tokens.hidden_BLD.dtype)
    count_B1 = weight_BL1.sum(dim=1)
    return (tokens.hidden_BLD * weight_BL1).sum(dim=1) / count_B1.clamp(min=1)


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


def attend(query_BLD: Tensor, key_BSD: Tensor, value_BSD: Tensor, is_token_BS: Tensor, heads: int) -> Tensor:
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


def check_heads(heads: int, width: int) -> None:
    if heads < 1 or width % heads:
        raise ConfigError(f"model.heads: {heads} heads do not divide the width {width} that they attend in")
