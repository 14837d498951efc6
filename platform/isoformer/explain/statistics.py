"""Shares of attention compared between two encoders, over the same RNAs.

Shapes: N RNAs, Y layers, H heads, R regions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

CAP: Final = 1.0
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Means over the RNAs that both have, the relative change, and the t-test's p-value. (Y, H, R)"""

    rho_A: Floats
    rho_B: Floats
    delta: Floats
    p: Floats
    n: NDArray[np.int64]


def compare(rho_A: Floats, rho_B: Floats, significance: float) -> Comparison:
    """(rho_A - rho_B) / rho_B, at most 1, and 0 where p >= `significance`.

    In: (N, Y, H, R) with NaN where an RNA has no share. Pairs with a NaN are left out. Where rho_B is 0 and
    rho_A is not, the change is the cap. p is NaN, and the change 0, where fewer than two pairs are left.
    """
    is_pair = np.isfinite(rho_A) & np.isfinite(rho_B)
    first, second = np.where(is_pair, rho_A, np.nan), np.where(is_pair, rho_B, np.nan)
    n = is_pair.sum(axis=0)
    mean_A, mean_B = mean_of(first), mean_of(second)
    p = paired_p(first - second)
    change = np.divide(
        mean_A - mean_B, mean_B, out=np.where(mean_A > 0, CAP, 0.0), where=np.nan_to_num(mean_B) > 0
    )
    is_significant = p < significance  # false for NaN
    return Comparison(mean_A, mean_B, np.where(is_significant, np.minimum(change, CAP), 0.0), p, n)


def mean_of(values: Floats) -> Floats:
    """Mean over the first axis without NaN; NaN where nothing is left."""
    count = np.isfinite(values).sum(axis=0)
    total = np.nansum(values, axis=0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def paired_p(difference: Floats) -> Floats:
    """Two-sided p-value of Student's t-test that the mean difference, over the first axis, is 0.

    1 where all differences are 0, 0 where all are one other value, NaN for fewer than two.
    """
    from scipy.special import stdtr

    count = np.isfinite(difference).sum(axis=0)
    mean = mean_of(difference)
    squares = np.nansum(np.square(difference - mean), axis=0)
    freedom = np.maximum(count - 1, 1)
    error = np.sqrt(squares / freedom / np.maximum(count, 1))
    t = np.divide(mean, error, out=np.where(mean == 0, 0.0, np.inf), where=error > 0)
    return np.where(count >= 2, 2 * stdtr(freedom, -np.abs(t)), np.nan)
