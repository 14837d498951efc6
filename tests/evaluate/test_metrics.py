"""Scores against scipy and scikit-learn, undefined scores counted, intervals against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import r2_score

from isoformer.errors import InputError
from isoformer.metrics import gene_bootstrap, regression_metrics


def made(count: int = 60, tissues: int = 4, seed: int = 0):
    random = np.random.default_rng(seed)
    targets = random.normal(size=(count, tissues)).round(1)  # rounded: there are ties
    predictions = (targets + random.normal(size=targets.shape)).round(1)
    mask = random.random(targets.shape) > 0.2
    genes = np.array([f"g{i // 3}" for i in range(count)])
    return targets, predictions, mask, genes


def test_scores_are_those_of_scipy_and_scikit_learn() -> None:
    targets, predictions, mask, _ = made()
    metrics = regression_metrics(targets, predictions, mask, ["a", "b", "c", "d"])
    for k in range(4):
        true, guess = targets[mask[:, k], k], predictions[mask[:, k], k]
        assert metrics.per_tissue["r2"][k] == pytest.approx(r2_score(true, guess))
        assert metrics.per_tissue["pearson"][k] == pytest.approx(pearsonr(true, guess).statistic)
        assert metrics.per_tissue["spearman"][k] == pytest.approx(spearmanr(true, guess).statistic)
    assert metrics.mean["r2"] == pytest.approx(metrics.per_tissue["r2"].mean())
    assert metrics.undefined == {"r2": 0, "spearman": 0, "pearson": 0}


def test_what_is_undefined_is_nan_and_counted() -> None:
    targets, predictions, mask, _ = made()
    targets[:, 0] = 1.3  # a constant target: nothing is defined
    predictions[:, 1] = 0.1  # a constant prediction: R² is, the correlations are not
    mask[:, 2] = False
    mask[5, 2] = True  # a single value
    metrics = regression_metrics(targets, predictions, mask)
    assert np.isnan(metrics.per_tissue["r2"]).tolist() == [True, False, True, False]
    assert np.isnan(metrics.per_tissue["spearman"]).tolist() == [True, True, True, False]
    assert metrics.undefined == {"r2": 2, "spearman": 3, "pearson": 3}
    assert metrics.mean["pearson"] == metrics.per_tissue["pearson"][3]


def test_all_undefined_is_nan() -> None:
    metrics = regression_metrics(np.ones((5, 2)), np.ones((5, 2)))
    assert np.isnan(metrics.mean["r2"]) and metrics.undefined["r2"] == 2


def test_draws_are_those_of_resampling_genes_one_by_one() -> None:
    targets, predictions, mask, genes = made(count=24, tissues=2)
    intervals = gene_bootstrap(targets, predictions, genes, mask, draws=200, seed=5)
    names, gene_of = np.unique(genes, return_inverse=True)
    times = np.random.default_rng(5).multinomial(len(names), np.full(len(names), 1 / len(names)), size=200)
    means = {"r2": [], "spearman": [], "pearson": []}
    for drawn in times:
        rows = np.repeat(np.arange(len(genes)), drawn[gene_of])
        metrics = regression_metrics(targets[rows], predictions[rows], mask[rows])
        true, guess = targets[rows][mask[rows][:, 0], 0], predictions[rows][mask[rows][:, 0], 0]
        assert metrics.per_tissue["spearman"][0] == pytest.approx(spearmanr(true, guess).statistic)
        for score, values in means.items():
            values.append(metrics.mean[score])
    for score, values in means.items():
        low, high = np.percentile(values, [2.5, 97.5])
        assert intervals[score].low == pytest.approx(low) and intervals[score].high == pytest.approx(high)
        assert intervals[score].draws == 200


def test_isoforms_widen_the_interval_because_genes_are_drawn() -> None:
    targets, predictions, mask, _ = made(count=50)
    as_genes = gene_bootstrap(targets, predictions, np.arange(50), mask)
    repeated = [np.repeat(x, 4, axis=0) for x in (targets, predictions, np.arange(50), mask)]
    by_gene = gene_bootstrap(*repeated)
    as_if_independent = gene_bootstrap(repeated[0], repeated[1], np.arange(200), repeated[3])
    width = {name: i["r2"].high - i["r2"].low for name, i in
             {"genes": as_genes, "isoforms": by_gene, "wrong": as_if_independent}.items()}  # fmt: skip
    assert width["isoforms"] == pytest.approx(width["genes"])
    assert width["wrong"] < 0.7 * width["isoforms"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, p: (t[:0], p[:0]), "no transcripts to score"),
        (lambda t, p: (t, p[:, :1]), "one \\(transcripts, tissues\\) shape"),
        (lambda t, p: (t, np.where(p > 1, np.nan, p)), "field 'predictions': values must be finite"),
    ],
)
def test_bad_input_is_named(change, message: str) -> None:
    targets, predictions, _, _ = made()
    with pytest.raises(InputError, match=message):
        regression_metrics(*change(targets, predictions))
