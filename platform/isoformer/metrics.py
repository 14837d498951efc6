"""How good predictions are: R², Spearman and Pearson a tissue over transcripts, then the mean over tissues.

A score that is undefined (a constant target or prediction, or fewer than two values) is NaN, stays out of the
mean and is counted. Intervals come from resampling genes with replacement, because isoforms of one gene are
not independent.

Shapes: N transcripts, K tissues, R bootstrap draws, G genes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoformer.errors import InputError

Floats = NDArray[np.float64]
SCORES: Final = ("r2", "spearman", "pearson")
DRAW_BLOCK_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class Interval:
    """Bounds of the central 95% of bootstrap draws; `draws` of them were defined."""

    low: float
    high: float
    draws: int


@dataclass(frozen=True)
class RegressionMetrics:
    """Scores a tissue (NaN where undefined), their means over tissues, and how many tissues were
    undefined.
    """

    names: tuple[str, ...]
    per_tissue: dict[str, Floats]
    mean: dict[str, float]
    undefined: dict[str, int]
    transcripts: int


def regression_metrics(
    targets: ArrayLike,
    predictions: ArrayLike,
    mask: ArrayLike | None = None,
    names: Sequence[str] | None = None,
) -> RegressionMetrics:
    """Score predictions (N, K) against targets (N, K) where `mask` (N, K) is true. InputError on shapes or
    NaN.
    """
    target_NK, predicted_NK, mask_NK = _checked(targets, predictions, mask)
    scores = _scores_of_draws(target_NK, predicted_NK, mask_NK, np.ones((1, len(target_NK))))
    per_tissue = {score: values[0] for score, values in scores.items()}
    return RegressionMetrics(
        names=tuple(names) if names is not None else tuple(f"target_{k}" for k in range(target_NK.shape[1])),
        per_tissue=per_tissue,
        mean={score: float(_mean_over_tissues(values[None])[0]) for score, values in per_tissue.items()},
        undefined={score: int(np.isnan(values).sum()) for score, values in per_tissue.items()},
        transcripts=len(target_NK),
    )


def gene_bootstrap(
    targets: ArrayLike,
    predictions: ArrayLike,
    genes: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    draws: int = 500,
    seed: int = 0,
) -> dict[str, Interval]:
    """95% percentile intervals of each score's mean over tissues, genes resampled with replacement."""
    target_NK, predicted_NK, mask_NK = _checked(targets, predictions, mask)
    gene_names, gene_of_N = np.unique(np.asarray(genes), return_inverse=True)
    if len(gene_of_N) != len(target_NK):
        raise InputError(
            "one gene a transcript is needed",
            field="genes",
            value=len(gene_of_N),
            allowed=str(len(target_NK)),
        )
    random = np.random.default_rng(seed)
    block = max(1, DRAW_BLOCK_BYTES // (8 * max(1, len(target_NK))))
    means: dict[str, list[Floats]] = {score: [] for score in SCORES}
    for start in range(0, draws, block):
        count = min(block, draws - start)
        times_RG = random.multinomial(
            len(gene_names), np.full(len(gene_names), 1 / len(gene_names)), size=count
        )
        scores = _scores_of_draws(target_NK, predicted_NK, mask_NK, times_RG[:, gene_of_N].astype(np.float64))
        for score in SCORES:
            means[score].append(_mean_over_tissues(scores[score]))
    return {score: _interval(np.concatenate(values)) for score, values in means.items()}


def _checked(
    targets: ArrayLike, predictions: ArrayLike, mask: ArrayLike | None
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    target_NK = np.asarray(targets, dtype=np.float64)
    predicted_NK = np.asarray(predictions, dtype=np.float64)
    mask_NK = np.ones(target_NK.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    shapes = {"targets": target_NK.shape, "predictions": predicted_NK.shape, "mask": mask_NK.shape}
    if target_NK.ndim != 2 or len(set(shapes.values())) != 1:
        raise InputError(
            f"targets, predictions and mask must have one (transcripts, tissues) shape, got {shapes}"
        )
    if len(target_NK) == 0:
        raise InputError("there are no transcripts to score", field="targets", value=target_NK.shape)
    for name, values in (("targets", target_NK), ("predictions", predicted_NK)):
        if not np.isfinite(values[mask_NK]).all():
            raise InputError("values must be finite where the mask is true", field=name)
    return np.where(mask_NK, target_NK, 0.0), np.where(mask_NK, predicted_NK, 0.0), mask_NK


def _scores_of_draws(
    target_NK: Floats, predicted_NK: Floats, mask_NK: NDArray[np.bool_], weight_RN: Floats
) -> dict[str, Floats]:
    """Each score a draw and tissue, (R, K): a transcript drawn w times counts as w transcripts."""
    result = {score: np.full((len(weight_RN), target_NK.shape[1]), np.nan) for score in SCORES}
    for k in range(target_NK.shape[1]):
        kept = mask_NK[:, k]
        if kept.sum() < 2:
            continue
        target, predicted = target_NK[kept, k], predicted_NK[kept, k]
        weight = np.ascontiguousarray(weight_RN[:, kept])
        result["r2"][:, k] = _r2(target, predicted, weight)
        result["pearson"][:, k] = _correlation(target[None], predicted[None], weight)
        result["spearman"][:, k] = _correlation(_ranks(target, weight), _ranks(predicted, weight), weight)
    return result


def _r2(target_N: Floats, predicted_N: Floats, weight_RN: Floats) -> Floats:
    centred = target_N - target_N.mean()
    total = weight_RN.sum(axis=1)
    squares = weight_RN @ np.stack([centred, centred**2, (target_N - predicted_N) ** 2], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        around_mean = squares[:, 1] - squares[:, 0] ** 2 / total
        value = 1.0 - squares[:, 2] / around_mean
    return np.where(around_mean > _tiny(squares[:, 1]), value, np.nan)


def _correlation(first_RN: Floats, second_RN: Floats, weight_RN: Floats) -> Floats:
    """Weighted Pearson correlation a draw; NaN where either side is constant."""
    with np.errstate(divide="ignore", invalid="ignore"):
        total = weight_RN.sum(axis=1, keepdims=True)
        first = first_RN - (weight_RN * first_RN).sum(axis=1, keepdims=True) / total
        second = second_RN - (weight_RN * second_RN).sum(axis=1, keepdims=True) / total
        weighted = weight_RN * first
        covariance = (weighted * second).sum(axis=1)
        first_square = (weighted * first).sum(axis=1)
        second_square = (weight_RN * second**2).sum(axis=1)
        value = covariance / np.sqrt(first_square * second_square)
    scale_first = _tiny((weight_RN * first_RN**2).sum(axis=1))
    scale_second = _tiny((weight_RN * second_RN**2).sum(axis=1))
    return np.where((first_square > scale_first) & (second_square > scale_second), value, np.nan)


def _tiny(scale: Floats) -> Floats:
    """Below this a sum of squares is rounding, not spread."""
    return 1e-12 * scale + 1e-300


def _ranks(values_N: Floats, weight_RN: Floats) -> Floats:
    """Mid-ranks (R, N) in the drawn sample: the ranks scipy gives when each value is repeated as often as
    drawn.
    """
    order = np.argsort(values_N, kind="stable")
    cumulative = np.cumsum(weight_RN[:, order], axis=1)
    _, group_of = np.unique(values_N[order], return_inverse=True)
    last_of_group = np.searchsorted(group_of, np.arange(group_of[-1] + 1), side="right") - 1
    up_to = cumulative[:, last_of_group]
    before = np.concatenate([np.zeros((len(weight_RN), 1)), up_to[:, :-1]], axis=1)
    ranks = np.empty_like(cumulative)
    ranks[:, order] = ((before + up_to + 1) / 2)[:, group_of]
    return ranks


def _mean_over_tissues(scores_RK: Floats) -> Floats:
    """Mean of the defined scores a row; NaN where none is."""
    defined = ~np.isnan(scores_RK)
    with np.errstate(invalid="ignore"):
        return np.where(defined, scores_RK, 0.0).sum(axis=1) / np.where(
            defined.any(axis=1), defined.sum(axis=1), np.nan
        )


def _interval(values_R: Floats) -> Interval:
    defined = values_R[~np.isnan(values_R)]
    if len(defined) == 0:
        return Interval(float("nan"), float("nan"), 0)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(float(low), float(high), len(defined))
