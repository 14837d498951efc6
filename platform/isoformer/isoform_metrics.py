"""What the mean over tissues hides: are isoforms of one gene told apart, and tissues of one transcript?

Within a gene of two isoforms or more, a tissue at a time:

    concordance   share of pairs of isoforms that are put in the right order (chance 0.5)
    top1          how often the strongest isoform is named (chance: one in as many as there are)
    share         Pearson correlation of an isoform's share of its gene's TPM, over isoforms

Within a transcript, over its tissues, each with the mean of the fitted rows taken off, so that a predictor of
tissue means alone scores 0:

    profile       Pearson correlation of predicted and measured profile, mean over transcripts
    tau           Spearman correlation of the tissue-specificity index (Yanai et al. 2005) over transcripts
    top_tissue    how often the strongest tissue is named (beside it: always naming the commonest one)

A predictor that gives every isoform its gene's value scores at chance in the first, one that gives every
transcript the tissues' means in the second. What is undefined is null, and counted.

Shapes: N transcripts, K tissues, G genes, R bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.stats import spearmanr

Floats = NDArray[np.float64]
_LEAST_TISSUES: Final = 3


class Measure(BaseModel):
    """A value with its 95% interval over genes; null where undefined."""

    model_config = ConfigDict(frozen=True)
    value: float | None
    low: float | None = None
    high: float | None = None


class IsoformMetrics(BaseModel):
    """`genes` have two scored isoforms or more; `pairs` and `tops` were counted, `ties` left out."""

    model_config = ConfigDict(frozen=True)
    genes: int
    transcripts: int
    pairs: int
    tied_pairs: int
    tops: int
    tied_tops: int
    concordance: Measure
    top1: Measure
    top1_chance: float | None
    share: Measure


class SpecificityMetrics(BaseModel):
    """`undefined`: transcripts with fewer than three known tissues, or the same value in all of them."""

    model_config = ConfigDict(frozen=True)
    transcripts: int
    undefined: int
    profile: Measure
    tau: float | None
    top_tissue: float | None
    top_tissue_commonest: float | None


def isoform_metrics(
    targets: NDArray[np.floating],
    predictions: NDArray[np.floating],
    mask: NDArray[np.bool_],
    genes: NDArray[np.str_],
    *,
    draws: int = 500,
    seed: int = 0,
) -> IsoformMetrics:
    """Of natural log(1 + TPM), (N, K) each. A predicted tie counts half a pair, or its part of a top."""
    _, gene_of_N, count_G = np.unique(genes, return_inverse=True, return_counts=True)
    wanted = np.flatnonzero(count_G >= 2)
    parts = [
        _gene_counts(targets[rows], predictions[rows], mask[rows])
        for rows in (np.flatnonzero(gene_of_N == gene) for gene in wanted)
    ]
    if not parts:
        nothing = Measure(value=None)
        return IsoformMetrics(
            genes=0, transcripts=0, pairs=0, tied_pairs=0, tops=0, tied_tops=0,
            concordance=nothing, top1=nothing, top1_chance=None, share=nothing,
        )  # fmt: skip
    sums = {name: np.stack([part[name] for part in parts]) for name in parts[0]}  # (G, K) each
    weight_RG = _weights(len(parts), draws, seed)

    def measured(score: Callable[[dict[str, Floats]], Floats]) -> Measure:
        return _measure(score({name: np.tensordot(weight_RG, one, 1) for name, one in sums.items()}))

    chance = _ratio(sums["chance"].sum(axis=0)[None], sums["tops"].sum(axis=0)[None])
    return IsoformMetrics(
        genes=len(parts),
        transcripts=int(count_G[wanted].sum()),
        pairs=int(sums["pairs"].sum()),
        tied_pairs=int(sums["tied_pairs"].sum()),
        tops=int(sums["tops"].sum()),
        tied_tops=int(sums["tied_tops"].sum()),
        concordance=measured(lambda s: _ratio(s["right"], s["pairs"])),
        top1=measured(lambda s: _ratio(s["hits"], s["tops"])),
        top1_chance=_number(float(chance[0])),
        share=measured(_share_correlation),
    )


def specificity_metrics(
    targets: NDArray[np.floating],
    predictions: NDArray[np.floating],
    mask: NDArray[np.bool_],
    genes: NDArray[np.str_],
    *,
    tissue_means: NDArray[np.floating],
    draws: int = 500,
    seed: int = 0,
) -> SpecificityMetrics:
    """Of natural log(1 + TPM), (N, K) each; `tissue_means` (K,) are those of the rows that were fitted."""
    profile_N = _profiles(targets - tissue_means, predictions - tissue_means, mask)
    defined = np.flatnonzero(np.isfinite(profile_N))
    enough = mask.sum(axis=1) >= _LEAST_TISSUES
    tops = [_top_tissue(values, mask, enough) for values in (targets, predictions)]
    has_top = np.flatnonzero(tops[0] >= 0)
    commonest = int(np.argmax(tissue_means))
    return SpecificityMetrics(
        transcripts=len(targets),
        undefined=len(targets) - len(defined),
        profile=_mean_over_genes(profile_N[defined], genes[defined], draws, seed),
        tau=_tau_correlation(targets, predictions, mask, enough),
        top_tissue=_number(float((tops[1] == tops[0])[has_top].mean())) if len(has_top) else None,
        top_tissue_commonest=_number(float((tops[0] == commonest)[has_top].mean())) if len(has_top) else None,
    )


def tau(values_NK: NDArray[np.floating], mask_NK: NDArray[np.bool_]) -> Floats:
    """sum(1 - x / max x) / (n - 1) over a transcript's n known tissues; values below 0 count as 0, NaN where
    all are 0.
    """
    known = np.where(mask_NK, np.maximum(values_NK, 0.0), 0.0).astype(np.float64)
    largest, count = known.max(axis=1), mask_NK.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        index = (count - known.sum(axis=1) / largest) / (count - 1)
    return np.where((largest > 0) & (count > 1), index, np.nan)


def _gene_counts(
    targets: NDArray[np.floating], predictions: NDArray[np.floating], mask: NDArray[np.bool_]
) -> dict[str, Floats]:
    """One gene's sums a tissue, (K,) each."""
    first, second = np.triu_indices(len(targets), k=1)
    both = mask[first] & mask[second]
    observed, predicted = (np.sign(x[first] - x[second]) for x in (targets, predictions))
    is_pair = both & (observed != 0)
    right = np.where(is_pair, np.where(predicted == 0, 0.5, (predicted == observed).astype(float)), 0.0)
    known = [np.where(mask, x, -np.inf) for x in (targets, predictions)]
    is_top, is_named = (x == x.max(axis=0) for x in known)
    several = mask.sum(axis=0) >= 2
    single_top = several & (is_top.sum(axis=0) == 1)
    named = (is_top & is_named).sum(axis=0) / is_named.sum(axis=0)
    x, y, weight = (
        *(_shares(values, mask) for values in (targets, predictions)),
        (mask & several).astype(float),
    )
    return {
        "pairs": is_pair.sum(axis=0).astype(float),
        "tied_pairs": (both & (observed == 0)).sum(axis=0).astype(float),
        "right": right.sum(axis=0),
        "tops": single_top.astype(float),
        "tied_tops": (several & ~single_top).astype(float),
        "hits": np.where(single_top, named, 0.0),
        "chance": np.where(single_top, 1 / np.maximum(1, mask.sum(axis=0)), 0.0),
        "n": weight.sum(axis=0),
        "x": (weight * x).sum(axis=0),
        "y": (weight * y).sum(axis=0),
        "xx": (weight * x * x).sum(axis=0),
        "yy": (weight * y * y).sum(axis=0),
        "xy": (weight * x * y).sum(axis=0),
    }


def _shares(values: NDArray[np.floating], mask: NDArray[np.bool_]) -> Floats:
    """Each isoform's part of the gene's TPM; even where the gene is off."""
    tpm = np.where(mask, np.expm1(np.maximum(values.astype(np.float64), 0.0)), 0.0)
    total, known = tpm.sum(axis=0), np.maximum(1, mask.sum(axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, tpm / total, 1.0 / known)


def _share_correlation(sums: dict[str, Floats]) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        n = sums["n"]
        covariance = sums["xy"] - sums["x"] * sums["y"] / n
        spreads = [sums[twice] - sums[once] ** 2 / n for once, twice in (("x", "xx"), ("y", "yy"))]
        defined = (spreads[0] > 1e-9) & (spreads[1] > 1e-9)
        return np.where(defined, covariance / np.sqrt(spreads[0] * spreads[1]), np.nan)


def _ratio(above: Floats, below: Floats) -> Floats:
    """A tissue at a time, then the mean over those that are defined: (R,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return _over_tissues(np.where(below > 0, above / below, np.nan))


def _over_tissues(score_RK: Floats) -> Floats:
    defined = np.isfinite(score_RK)
    with np.errstate(invalid="ignore"):
        total = np.where(defined, score_RK, 0.0).sum(axis=1)
        return np.where(defined.any(axis=1), total / np.maximum(1, defined.sum(axis=1)), np.nan)


def _profiles(targets: Floats, predictions: Floats, mask: NDArray[np.bool_]) -> Floats:
    """Correlation over known tissues, (N,); 0 where the predicted profile is flat, NaN where the measured."""
    count = np.maximum(1, mask.sum(axis=1, keepdims=True))
    x, y = (
        np.where(mask, v - np.where(mask, v, 0.0).sum(axis=1, keepdims=True) / count, 0.0)
        for v in (targets, predictions)
    )
    spread_x, spread_y = (x**2).sum(axis=1), (y**2).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.where(spread_y > 1e-9, (x * y).sum(axis=1) / np.sqrt(spread_x * spread_y), 0.0)
    return np.where((spread_x > 1e-9) & (mask.sum(axis=1) >= _LEAST_TISSUES), correlation, np.nan)


def _top_tissue(
    values: NDArray[np.floating], mask: NDArray[np.bool_], enough: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """The strongest tissue, -1 where there are too few or none is above the others."""
    known = np.where(mask, values, -np.inf)
    is_top = known == known.max(axis=1, keepdims=True)
    return np.where(enough & (is_top.sum(axis=1) == 1), known.argmax(axis=1), -1)


def _tau_correlation(
    targets: NDArray[np.floating],
    predictions: NDArray[np.floating],
    mask: NDArray[np.bool_],
    enough: NDArray[np.bool_],
) -> float | None:
    observed, predicted = tau(targets, mask), tau(predictions, mask)
    rows = enough & np.isfinite(observed) & np.isfinite(predicted)
    if rows.sum() < 2 or np.ptp(observed[rows]) == 0 or np.ptp(predicted[rows]) == 0:
        return None
    return _number(float(spearmanr(observed[rows], predicted[rows]).statistic))


def _mean_over_genes(values_N: Floats, genes: NDArray[np.str_], draws: int, seed: int) -> Measure:
    if len(values_N) == 0:
        return Measure(value=None)
    _, gene_of_N = np.unique(genes, return_inverse=True)
    sum_G, count_G = np.bincount(gene_of_N, values_N), np.bincount(gene_of_N)
    weight_RG = _weights(len(sum_G), draws, seed)
    return _measure((weight_RG @ sum_G) / (weight_RG @ count_G))


def _weights(genes: int, draws: int, seed: int) -> Floats:
    """How often each gene is drawn: once in the first row, which is the value itself."""
    random = np.random.default_rng(seed)
    drawn = random.multinomial(genes, np.full(genes, 1 / genes), size=draws)
    return np.concatenate([np.ones((1, genes)), drawn])


def _measure(values_R: Floats) -> Measure:
    """The first is the value, the others are draws."""
    if values_R.ndim == 2:
        values_R = _over_tissues(values_R)
    defined = values_R[1:][np.isfinite(values_R[1:])]
    if not np.isfinite(values_R[0]):
        return Measure(value=None)
    low, high = np.percentile(defined, [2.5, 97.5]) if len(defined) else (np.nan, np.nan)
    return Measure(value=float(values_R[0]), low=_number(float(low)), high=_number(float(high)))


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
