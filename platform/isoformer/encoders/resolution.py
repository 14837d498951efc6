"""How much of the output is kept: one vector (`pooled`, the mean; `max`; `cls`), `bins:N` (adaptive mean) or
`tokens` (all of it).

In: `Encoded` (flat positions of several sequences). Out: one (positions, width) float32 array a sequence.
Each sequence is reduced by itself, so its numbers do not depend on its neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from isoformer.encoders.spec import Encoded, EncoderSpec
from isoformer.errors import ConfigError, EncoderError

if TYPE_CHECKING:
    from torch import Tensor

# P positions of all sequences, L positions of one sequence, D width

ONE_VECTOR: Final = ("pooled", "max", "cls")
_BINS = re.compile(r"bins:([1-9][0-9]*)")


def reduce(encoded: Encoded, resolution: str) -> list[NDArray[np.float32]]:
    """One array a sequence at the asked resolution.

    `bins:N`: as torch's adaptive_avg_pool1d; a sequence with fewer positions than N keeps its own positions.
    Raises ConfigError for an unknown resolution, EncoderError for values that are not finite or all zero.
    """
    reduced = reduce_each(encoded, resolution)
    return [_checked(_as_array(values_LD), index) for index, values_LD in enumerate(reduced)]


def reduce_each(encoded: Encoded, resolution: str) -> list[Tensor]:
    """As `reduce`, left on the device and unchecked: one (positions, width) float32 tensor a sequence."""
    most = max_positions(resolution)
    return [_reduced(states_LD, resolution, most) for states_LD in _states(encoded, resolution)]


def max_positions(resolution: str) -> int | None:
    """The most positions a sequence can have at this resolution; None for all of them. Needs no torch."""
    if resolution in ONE_VECTOR:
        return 1
    if resolution == "tokens":
        return None
    match = _BINS.fullmatch(resolution)
    if match is None:
        raise ConfigError(
            f"resolution {resolution!r} is not known; allowed: pooled, max, cls, bins:N (N >= 1), tokens"
        )
    return int(match[1])


def require_resolution(spec: EncoderSpec, resolution: str) -> None:
    """ConfigError where the encoder cannot give it."""
    max_positions(resolution)
    if resolution == "cls" and not spec.has_cls:
        raise ConfigError(f"{spec.name} has no <cls> token; resolution may be pooled, max, bins:N or tokens")


def positions_after(positions: int, resolution: str) -> int:
    """How many positions a sequence of `positions` has after the reduction."""
    most = max_positions(resolution)
    return positions if most is None else min(positions, most)


def _states(encoded: Encoded, resolution: str) -> Sequence[Tensor]:
    """Each sequence's states (L, D): its positions', or that of its `<cls>` alone."""
    import torch

    if resolution != "cls":
        return torch.split(encoded.hidden_PD, np.diff(encoded.offsets).tolist())
    if encoded.cls_BD is None:
        raise EncoderError(
            "resolution cls: this encoder has no <cls> token; allowed: pooled, max, bins:N, tokens"
        )
    return torch.split(encoded.cls_BD, 1)


def _reduced(states_LD: Tensor, resolution: str, most: int | None) -> Tensor:
    from torch.nn import functional

    states_LD = states_LD.float()
    if resolution == "max":
        return states_LD.amax(dim=0, keepdim=True)
    if most is None or most >= len(states_LD):
        return states_LD
    return functional.adaptive_avg_pool1d(states_LD.T.unsqueeze(0), most).squeeze(0).T


def _as_array(values_LD: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(values_LD.detach().cpu().numpy())


def _checked(values_LD: NDArray[np.float32], index: int) -> NDArray[np.float32]:
    if not np.isfinite(values_LD).all():
        raise EncoderError(f"sequence {index} of the pack: the encoder returned a value that is not finite")
    if not values_LD.any():
        raise EncoderError(f"sequence {index} of the pack: the encoder returned only zeros")
    return values_LD
