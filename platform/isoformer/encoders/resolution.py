"""How much of the output is kept: `pooled` (one vector), `bins:N` (adaptive mean) or `tokens` (all of it).

In: `Encoded` (flat positions of several sequences). Out: one (positions, width) float32 array a sequence.
Each sequence is reduced by itself, so its numbers do not depend on its neighbours.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from isoformer.encoders.spec import Encoded
from isoformer.errors import ConfigError, EncoderError

# P positions of all sequences, L positions of one sequence, D width

_BINS = re.compile(r"bins:([1-9][0-9]*)")


def reduce(encoded: Encoded, resolution: str) -> list[NDArray[np.float32]]:
    """One array a sequence at the asked resolution.

    `bins:N`: as torch's adaptive_avg_pool1d; a sequence with fewer positions than N keeps its own positions.
    Raises ConfigError for an unknown resolution, EncoderError for values that are not finite or all zero.
    """
    most = max_positions(resolution)
    bounds = zip(encoded.offsets[:-1].tolist(), encoded.offsets[1:].tolist(), strict=True)
    return [_checked(_reduced(encoded, start, end, most), index) for index, (start, end) in enumerate(bounds)]


def max_positions(resolution: str) -> int | None:
    """The most positions a sequence can have at this resolution; None for all of them. Needs no torch."""
    if resolution == "pooled":
        return 1
    if resolution == "tokens":
        return None
    match = _BINS.fullmatch(resolution)
    if match is None:
        raise ConfigError(f"resolution {resolution!r} is not known; allowed: pooled, bins:N (N >= 1), tokens")
    return int(match[1])


def positions_after(positions: int, resolution: str) -> int:
    """How many positions a sequence of `positions` has after the reduction."""
    most = max_positions(resolution)
    return positions if most is None else min(positions, most)


def _reduced(encoded: Encoded, start: int, end: int, most: int | None) -> NDArray[np.float32]:
    from torch.nn import functional

    hidden_LD = encoded.hidden_PD[start:end].detach().float()
    if most is not None and most < end - start:
        hidden_LD = functional.adaptive_avg_pool1d(hidden_LD.T.unsqueeze(0), most).squeeze(0).T
    return np.ascontiguousarray(hidden_LD.cpu().numpy())


def _checked(values_LD: NDArray[np.float32], index: int) -> NDArray[np.float32]:
    if not np.isfinite(values_LD).all():
        raise EncoderError(f"sequence {index} of the pack: the encoder returned a value that is not finite")
    if not values_LD.any():
        raise EncoderError(f"sequence {index} of the pack: the encoder returned only zeros")
    return values_LD
