"""Attention within each of several sequences that are laid end to end: three routes, one result.

In: queries, keys, values (T, H, E) and the offsets of B sequences. Out: (T, D), D = H * E. No sequence sees
another.

    variable length   one flash kernel for all; half precision on a CUDA device
    per sequence      a kernel call a sequence (runs of equal length as one): no padding; the CPU's route
    padded            one kernel call with a mask: where neither of them serves (float32 on a CUDA device)

`route_for` chooses; `doctor` names the choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Final, cast

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

# T tokens of all sequences, B sequences, L tokens of one, D width, H heads, E width of a head

Attend = Callable[[Tensor, Tensor, Tensor, list[int]], Tensor]

_FLASH_CAPABILITY: Final = (8, 0)
_FLASH_WIDTH_MULTIPLE: Final = 8


@dataclass(frozen=True)
class Route:
    """A way to compute attention, and the name that it goes by."""

    name: str
    attend: Attend


def route_for(device: str, dtype: torch.dtype, head_width: int) -> Route:
    """The fastest route that the device can take."""
    if torch.device(device).type != "cuda":
        return PER_SEQUENCE
    can_flash = torch.cuda.get_device_capability(torch.device(device)) >= _FLASH_CAPABILITY
    if can_flash and dtype in (torch.bfloat16, torch.float16) and head_width % _FLASH_WIDTH_MULTIPLE == 0:
        return VARIABLE_LENGTH
    return PADDED


def by_precision(query_THE: Tensor, key_THE: Tensor, value_THE: Tensor, offsets: list[int]) -> Tensor:
    """The route for what is being computed: automatic mixed precision leaves rotated queries in float32."""
    route = route_for(str(value_THE.device), value_THE.dtype, value_THE.shape[-1])
    return route.attend(query_THE.to(value_THE), key_THE.to(value_THE), value_THE, offsets)


def variable_length(query_THE: Tensor, key_THE: Tensor, value_THE: Tensor, offsets: list[int]) -> Tensor:
    """All sequences in one call of PyTorch's variable-length flash attention."""
    from torch.nn.attention.varlen import varlen_attn

    bounds = torch.tensor(offsets, dtype=torch.int32, device=query_THE.device)
    longest = int(np.diff(offsets).max())
    mixed = varlen_attn(query_THE, key_THE, value_THE, bounds, bounds, longest, longest)
    return rearrange(cast(Tensor, mixed), "t h e -> t (h e)")


def per_sequence(
    query_THE: Tensor, key_THE: Tensor, value_THE: Tensor, offsets: list[int], *, scale: float | None = None
) -> Tensor:
    """One call for each run of neighbouring sequences of equal length. `scale` null: 1 / sqrt(E)."""
    mixed = [
        _equal_lengths(query_THE[start:end], key_THE[start:end], value_THE[start:end], length, scale)
        for start, end, length in runs_of_equal_length(offsets)
    ]
    return torch.cat(mixed)


def padded(query_THE: Tensor, key_THE: Tensor, value_THE: Tensor, offsets: list[int]) -> Tensor:
    """One call over sequences padded to the longest; padding is masked, and left out again."""
    lengths = np.diff(offsets)
    is_token_BL = torch.from_numpy(np.arange(lengths.max()) < lengths[:, None]).to(query_THE.device)

    def spread(tensor_THE: Tensor) -> Tensor:
        shape = (*is_token_BL.shape, *tensor_THE.shape[1:])
        padded_BLHE = tensor_THE.new_zeros(shape).masked_scatter(is_token_BL[..., None, None], tensor_THE)
        return rearrange(padded_BLHE, "b l h e -> b h l e")

    mask_B11L = is_token_BL[:, None, None]
    mixed_BHLE = functional.scaled_dot_product_attention(
        spread(query_THE), spread(key_THE), spread(value_THE), attn_mask=mask_B11L
    )
    return rearrange(mixed_BHLE, "b h l e -> b l (h e)")[is_token_BL]


def runs_of_equal_length(offsets: list[int]) -> list[tuple[int, int, int]]:
    """(start, end, length) of each run of neighbouring sequences of equal length."""
    runs: list[tuple[int, int, int]] = []
    start = 0
    for length, group in groupby(np.diff(offsets).tolist()):
        end = start + length * len(list(group))
        runs.append((start, end, length))
        start = end
    return runs


def _equal_lengths(
    query_THE: Tensor, key_THE: Tensor, value_THE: Tensor, length: int, scale: float | None
) -> Tensor:
    query, key, value = (
        rearrange(tensor, "(b l) h e -> b h l e", l=length) for tensor in (query_THE, key_THE, value_THE)
    )
    mixed_BHLE = functional.scaled_dot_product_attention(query, key, value, scale=scale)
    return rearrange(mixed_BHLE, "b h l e -> (b l) (h e)")


VARIABLE_LENGTH: Final = Route("variable-length flash attention", variable_length)
PER_SEQUENCE: Final = Route("one attention call a sequence, no padding", per_sequence)
PADDED: Final = Route("padded attention with a mask", padded)
