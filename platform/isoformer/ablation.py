"""What each modality brings: every single one, each pair, all, beside baselines, on the same transcripts.

For each subset of modalities two ways: the fusion model, and a ridge on the mean-pooled embeddings
(`ridge_probe`), which on a few hundred genes is the strong simple model. Length and composition baselines
stand in the same table, and, where a dataset of random encoders is given, the same rows from those.

With `folds` the genes are shuffled by the seed and cut into folds; each transcript is predicted once, by a
model that never saw its gene. Without, the dataset's own test split is scored and the seed changes what
training draws. A ridge fits on everything that is not test; the fusion model gives a tenth of that up for
early stopping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from isoformer.baselines import WITHOUT_ENCODERS, Predict, baseline_predictors, probe_predictors
from isoformer.config import FrozenConfig
from isoformer.errors import InputError
from isoformer.schema import Modality
from isoformer.scores import Predicted, ScoreRow, ScoreTable, score_row
from isoformer.training.config import TrainConfig
from isoformer.training.data import PinnedDataset

Progress = Callable[[str, int, int], None]
Predictor = Callable[[PinnedDataset, int], NDArray[np.floating]]


class AblationConfig(FrozenConfig):
    """Which rows and how often. `folds` null: the dataset's own split."""

    folds: int | None = Field(default=5, ge=2)
    seeds: tuple[int, ...] = (0,)
    fusion_models: bool = True
    ridge_probes: bool = True
    draws: int = Field(default=500, ge=1)


def ablation(
    config: TrainConfig,
    data: PinnedDataset,
    options: AblationConfig | None = None,
    *,
    random_data: PinnedDataset | None = None,
    progress: Progress | None = None,
) -> ScoreTable:
    """The table over all subsets of the dataset's modalities.

    `random_data` is the same transcripts embedded by random encoders; `progress(row, done, rows)` is called a
    row.
    """
    options = options or AblationConfig()
    if random_data is not None and not np.array_equal(random_data.transcript_ids, data.transcript_ids):
        raise InputError("the random encoders' dataset has other transcripts", field="transcript_id")
    jobs = list(_jobs(config, data, options, random_data))
    rows: list[ScoreRow] = []
    for done, (name, method, source, predictor) in enumerate(jobs):
        if progress is not None:
            progress(f"{name} ({method})", done, len(jobs))
        repeats = [_repeat(source, predictor, seed, options.folds) for seed in options.seeds]
        from_encoders = method not in WITHOUT_ENCODERS
        row = score_row(source, name, method, repeats, draws=options.draws, uses_encoders=from_encoders)
        rows.append(row)
    if progress is not None:
        progress("done", len(jobs), len(jobs))
    return ScoreTable(
        protocol=_protocol(options),
        data_fingerprint=data.fingerprint,
        target_unit=data.target_unit,
        rows=tuple(rows),
    )


def subsets(modalities: Sequence[Modality]) -> list[tuple[Modality, ...]]:
    """Every single modality, each pair, all three: in that order."""
    return [subset for size in range(1, len(modalities) + 1) for subset in combinations(modalities, size)]


def gene_folds(genes: NDArray[np.str_], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each transcript: genes shuffled by the seed, cut into folds of like size. InputError where
    too few.
    """
    distinct, gene_of_N = np.unique(genes, return_inverse=True)
    if len(distinct) < 2 * folds:
        most = f"at most {len(distinct) // 2}"
        raise InputError("too few genes for these folds", field="folds", value=folds, allowed=most)
    order = np.random.default_rng([seed, folds]).permutation(len(distinct))
    fold_of_gene = np.empty(len(distinct), dtype=np.int64)
    fold_of_gene[order] = np.arange(len(distinct)) % folds
    return fold_of_gene[gene_of_N]


def _jobs(
    config: TrainConfig, data: PinnedDataset, options: AblationConfig, random_data: PinnedDataset | None
) -> Iterator[tuple[str, str, PinnedDataset, Predictor]]:
    for (name, method), predict in baseline_predictors(data).items():
        yield name, method, data, _on_what_is_not_test(predict)
    for source in [data] if random_data is None else [data, random_data]:
        for modalities in subsets(source.modalities):
            part = source.subset(modalities)
            if options.ridge_probes:
                for (name, method), predict in probe_predictors(part).items():
                    yield name, method, part, _on_what_is_not_test(predict)
            if options.fusion_models:
                yield "+".join(modalities), config.model.fusion, part, _fusion_predictor(config)


def _repeat(data: PinnedDataset, predictor: Predictor, seed: int, folds: int | None) -> Predicted:
    if folds is None:
        return Predicted(predictor(data, seed), data.rows("test"))
    fold_of_N = gene_folds(data.gene_ids, folds, seed)
    pooled = np.empty(data.targets.shape, dtype=np.float64)
    for fold in range(folds):
        is_test = fold_of_N == fold
        split = np.where(is_test, "test", "train")
        pooled[is_test] = predictor(data.with_split(split), seed)[is_test]
    parts = tuple(np.flatnonzero(fold_of_N == fold) for fold in range(folds))
    return Predicted(pooled, np.arange(len(data)), parts)


def _on_what_is_not_test(predict: Predict) -> Predictor:
    return lambda data, seed: predict(np.flatnonzero(data.split != "test"))


def _fusion_predictor(config: TrainConfig) -> Predictor:
    def predictor(data: PinnedDataset, seed: int) -> NDArray[np.floating]:
        from isoformer.training.loop import fit, predict

        has_validation = bool((data.split == "validation").any())
        model = config.model.with_modalities(data.modalities)
        validation = config.validation if has_validation else "redraw"
        fitted = fit(config.edited(model=model, seed=seed, validation=validation), data)
        return predict(fitted.model, data, np.arange(len(data)))

    return predictor


def _protocol(options: AblationConfig) -> str:
    seeds = f"{len(options.seeds)} seed{'s' if len(options.seeds) > 1 else ''}"
    if options.folds is None:
        return f"the dataset's test split, {seeds}; ± is the spread over seeds"
    return f"{options.folds} folds by gene, {seeds}, pooled over folds; ± is the spread over single folds"
