"""Isoforms within a gene and tissues within a transcript: against plain loops, and at chance."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from isoformer.isoform_metrics import isoform_metrics, specificity_metrics, tau

GENES: Any = np.array(["a", "a", "a", "b", "b", "c", "d", "d", "d", "d"])


def made(seed: int = 0, tissues: int = 5) -> tuple[Any, Any, Any]:
    random = np.random.default_rng(seed)
    targets = np.round(random.gamma(1.0, 1.5, size=(len(GENES), tissues)), 1)
    predictions = targets + random.normal(size=targets.shape)
    predictions[1] = predictions[0]
    mask = random.random(targets.shape) > 0.2
    return targets, predictions, mask


def test_concordance_and_top1_are_those_of_a_plain_loop() -> None:
    targets, predictions, mask = made()
    per_tissue: list[float] = []
    tops: list[float] = []
    counted = tied = 0
    for k in range(5):
        right, pairs, hits, tested = 0.0, 0, 0.0, 0
        for gene in "abcd":
            rows = [i for i in np.flatnonzero(gene == GENES) if mask[i, k]]
            for i, j in itertools.combinations(rows, 2):
                if targets[i, k] == targets[j, k]:
                    tied += 1
                    continue
                pairs += 1
                order = np.sign(predictions[i, k] - predictions[j, k])
                right += 0.5 if order == 0 else float(order == np.sign(targets[i, k] - targets[j, k]))
            best = [i for i in rows if targets[i, k] == max(targets[r, k] for r in rows)]
            if len(rows) >= 2 and len(best) == 1:
                named = [i for i in rows if predictions[i, k] == max(predictions[r, k] for r in rows)]
                tested += 1
                hits += (best[0] in named) / len(named)
        counted += pairs
        per_tissue.append(right / pairs)
        tops.append(hits / tested)
    found = isoform_metrics(targets, predictions, mask, GENES, draws=50)
    assert found.concordance.value == pytest.approx(np.mean(per_tissue))
    assert found.top1.value == pytest.approx(np.mean(tops))
    assert (found.pairs, found.tied_pairs, found.genes, found.transcripts) == (counted, tied, 3, 9)
    assert found.concordance.low is not None and found.concordance.low <= found.concordance.value


def test_share_correlation_is_scipys() -> None:
    targets, predictions, mask = made(1)
    correlations = []
    for k in range(5):
        x, y = [], []
        for gene in "abd":
            rows = [i for i in np.flatnonzero(gene == GENES) if mask[i, k]]
            if len(rows) >= 2:
                for values, kept in ((targets, x), (predictions, y)):
                    tpm = np.expm1(np.maximum(values[rows, k], 0))
                    kept += list(tpm / tpm.sum()) if tpm.sum() else [1 / len(rows)] * len(rows)
        correlations.append(pearsonr(x, y).statistic)
    found = isoform_metrics(targets, predictions, mask, GENES, draws=5)
    assert found.share.value == pytest.approx(np.mean(correlations))


def test_a_genes_value_for_all_of_its_isoforms_scores_at_chance() -> None:
    targets, _, _ = made(2)
    mask = np.ones_like(targets, dtype=bool)
    predictions = np.stack([targets[gene == GENES].mean(axis=0) for gene in GENES])
    found = isoform_metrics(targets, predictions, mask, GENES, draws=20)
    assert found.concordance.value == pytest.approx(0.5)
    assert found.top1.value == pytest.approx(found.top1_chance)
    assert found.top1_chance is not None and 1 / 4 < found.top1_chance < 1 / 2
    assert isoform_metrics(targets, targets, mask, GENES, draws=2).concordance.value == 1.0


def test_what_is_undefined_is_null_and_not_zero() -> None:
    targets, predictions, mask = made()
    alone = np.array([f"g{i}" for i in range(len(GENES))])
    found = isoform_metrics(targets, predictions, mask, alone)
    assert (found.genes, found.concordance.value, found.top1_chance) == (0, None, None)
    flat = isoform_metrics(np.ones_like(targets), predictions, mask, GENES, draws=5)
    assert flat.concordance.value is None and flat.tied_pairs > 0 and flat.pairs == 0
    specific = specificity_metrics(
        np.ones_like(targets), predictions, mask, GENES, tissue_means=np.ones(5), draws=5
    )
    assert specific.profile.value is None and specific.undefined == len(GENES)


def test_specificity_is_that_of_a_plain_loop() -> None:
    targets, predictions, mask = made(3, tissues=7)
    means = targets.mean(axis=0)
    kept = [i for i in range(len(GENES)) if mask[i].sum() >= 3]
    profiles = [
        pearsonr((targets - means)[i, mask[i]], (predictions - means)[i, mask[i]]).statistic for i in kept
    ]
    found = specificity_metrics(targets, predictions, mask, GENES, tissue_means=means, draws=10)
    assert found.profile.value == pytest.approx(np.mean(profiles))
    assert found.undefined == len(GENES) - len(kept)

    def index(values: Any) -> float:
        clipped = np.maximum(values, 0)
        return float(sum(1 - x / clipped.max() for x in clipped) / (len(clipped) - 1))

    both = [[index(values[i, mask[i]]) for i in kept] for values in (targets, predictions)]
    assert found.tau == pytest.approx(spearmanr(*both).statistic)
    np.testing.assert_allclose(tau(targets, mask)[kept], both[0])


def test_tissue_means_alone_score_nothing() -> None:
    targets, _, _ = made(4)
    mask, means = np.ones_like(targets, dtype=bool), targets.mean(axis=0)
    predictions = np.tile(means, (len(targets), 1))
    found = specificity_metrics(targets, predictions, mask, GENES, tissue_means=means, draws=10)
    assert found.profile.value == 0.0
    assert found.tau is None
    assert found.top_tissue == found.top_tissue_commonest
