"""Score a finished run on held-out genes, beside baselines fitted on the same split.

    runs/<run>/  →  predictions.parquet   a row a transcript: prediction and target in natural log(1 + TPM)
                    evaluation.json       the table with intervals, and each method's scores a tissue

The ridge baselines (length, composition, mean-pooled embeddings) fit on everything that is not test.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from isoformer.ablation import AblationConfig, ablation
from isoformer.baselines import WITHOUT_ENCODERS, baseline_predictors, probe_predictors, target_statistics
from isoformer.errors import FingerprintError, InputError
from isoformer.isoform_metrics import (
    IsoformMetrics,
    SpecificityMetrics,
    isoform_metrics,
    specificity_metrics,
)
from isoformer.metrics import SCORES, regression_metrics
from isoformer.schema import SPLITS
from isoformer.scores import Predicted, ScoreTable, score_row
from isoformer.storage import open_storage
from isoformer.training.data import PinnedDataset, load_dataset
from isoformer.training.loop import device_named, predict
from isoformer.training.runs import RunFolder, RunSettings, without_nan
from isoformer.training.seeds import is_seed_set, read_seed_runs

__all__ = ["AblationConfig", "Evaluation", "TissueScore", "ablation", "evaluate"]

PREDICTIONS_KEY: Final = "predictions.parquet"
EVALUATION_KEY: Final = "evaluation.json"


class TissueScore(BaseModel):
    """One method in one tissue; null where undefined."""

    model_config = ConfigDict(frozen=True)
    tissue: str
    name: str
    method: str
    r2: float | None
    spearman: float | None
    pearson: float | None


class Detail(BaseModel):
    """What the mean over tissues hides, of one method. `pooled`: scores over all known values at once, each
    tissue standardised by the rows that are not scored.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    method: str
    pooled: dict[str, float | None]
    isoforms: IsoformMetrics
    specificity: SpecificityMetrics


class Evaluation(BaseModel):
    """evaluation.json. The first row of the table is the run's model."""

    model_config = ConfigDict(frozen=True)
    run: str
    split: str
    data_fingerprint: str
    run_fingerprint: str
    transcripts_by_split: dict[str, int]
    without_any_modality: int
    table: ScoreTable
    per_tissue: tuple[TissueScore, ...]
    details: tuple[Detail, ...] = ()


def evaluate(
    root: str, run: str, *, split: str = "test", draws: int = 1000, data: PinnedDataset | None = None
) -> Evaluation:
    """Score `run` on `split` and write both files beside it. `run` may be a set of seeds: the table's first
    row is then their mean, with its spread; `per_tissue` is the first seed's, `details` are of each.

    `data` saves reading the dataset again. StorageError where the run is not there or not finished;
    FingerprintError where the dataset is no longer the one it was trained on; InputError where the split is
    empty.
    """
    storage = open_storage(root)
    names = read_seed_runs(storage, run) if is_seed_set(storage, run) else [run]
    folders = [RunFolder(storage, name) for name in names]
    settings = folders[0].settings()
    data = data or load_dataset(
        root, settings.train.keys, encoders=settings.train.model.encoders, sketches=True
    )
    data = data.subset(settings.train.model.modalities)
    rows = data.rows(split)
    without = data.require_inputs(data.modalities, (split,))
    models = [_run_method(folder, data) for folder in folders]
    baselines = _baselines(data, split)
    evaluation = Evaluation(
        run=run,
        split=split,
        data_fingerprint=data.fingerprint,
        run_fingerprint=settings.fingerprint,
        transcripts_by_split={name: int((data.split == name).sum()) for name in SPLITS},
        without_any_modality=without,
        table=_table(data, models, baselines, rows, draws=draws, split=split),
        per_tissue=tuple(
            score for method in (models[0], *baselines) for score in _tissue_scores(data, *method, rows)
        ),
        details=tuple(_detail(data, *method, rows, draws) for method in (*models, *baselines)),
    )
    for folder, (_, _, predictions) in zip(folders, models, strict=True):
        _write_predictions(folder, data, predictions, rows)
    text = json.dumps(without_nan(evaluation.model_dump(mode="json")), indent=2)
    storage.write_bytes(f"runs/{run}/{EVALUATION_KEY}", text.encode())
    return evaluation


def read_evaluation(root: str, run: str) -> Evaluation:
    """The evaluation written beside a run. StorageError where there is none."""
    folder = RunFolder(open_storage(root), run)
    return Evaluation.model_validate_json(folder.storage.read_bytes(folder.prefix + EVALUATION_KEY))


Method = tuple[str, str, NDArray[np.floating]]


def _run_method(folder: RunFolder, data: PinnedDataset) -> Method:
    settings = folder.settings()
    _require_same_data(settings, data, folder)
    model = folder.model().to(device_named("auto"))
    return "+".join(data.modalities), settings.train.model.fusion, predict(model, data, np.arange(len(data)))


def _baselines(data: PinnedDataset, split: str) -> list[Method]:
    if split == "train":
        problem = "the baselines need a split they do not fit on"
        raise InputError(problem, field="split", value=split, allowed="test, validation")
    others = ("train", "validation") if split == "test" else ("train",)
    fit_rows = np.flatnonzero(np.isin(data.split, others))
    predictors = {**baseline_predictors(data), **probe_predictors(data)}
    return [(name, method, predict(fit_rows)) for (name, method), predict in predictors.items()]


def _table(
    data: PinnedDataset,
    models: Sequence[Method],
    baselines: Sequence[Method],
    rows: NDArray[np.int64],
    *,
    draws: int,
    split: str,
) -> ScoreTable:
    scored = []
    for seeds in (models, *([one] for one in baselines)):
        name, method, _ = seeds[0]
        from_encoders = method not in WITHOUT_ENCODERS
        predicted = [Predicted(predictions, rows) for _, _, predictions in seeds]
        scored.append(score_row(data, name, method, predicted, draws=draws, uses_encoders=from_encoders))
    return ScoreTable(
        protocol=f"the dataset's {split} split",
        data_fingerprint=data.fingerprint,
        target_unit=data.target_unit,
        rows=tuple(scored),
    )


def _tissue_scores(
    data: PinnedDataset, name: str, method: str, predictions: NDArray[np.floating], rows: NDArray[np.int64]
) -> list[TissueScore]:
    mask = data.target_mask[rows]
    metrics = regression_metrics(data.targets[rows], predictions[rows], mask, data.target_names)
    return [
        TissueScore(
            tissue=tissue, name=name, method=method,
            **{score: without_nan(float(metrics.per_tissue[score][k])) for score in SCORES},
        )
        for k, tissue in enumerate(metrics.names)
    ]  # fmt: skip


def _detail(
    data: PinnedDataset,
    name: str,
    method: str,
    predictions: NDArray[np.floating],
    rows: NDArray[np.int64],
    draws: int,
) -> Detail:
    mean, sd = target_statistics(data, np.setdiff1d(np.arange(len(data)), rows))
    targets, predicted, mask = data.targets[rows], predictions[rows], data.target_mask[rows]
    flat = [((values - mean) / sd)[mask][:, None] for values in (targets, predicted)]
    pooled = regression_metrics(flat[0], flat[1]).mean
    genes = data.gene_ids[rows]
    return Detail(
        name=name,
        method=method,
        pooled={score: without_nan(pooled[score]) for score in SCORES},
        isoforms=isoform_metrics(targets, predicted, mask, genes, draws=draws),
        specificity=specificity_metrics(targets, predicted, mask, genes, tissue_means=mean, draws=draws),
    )


def _write_predictions(
    folder: RunFolder, data: PinnedDataset, predictions: NDArray[np.floating], rows: NDArray[np.int64]
) -> None:
    def listed(values: NDArray[np.generic], value_type: pa.DataType) -> pa.Array:
        flat = pa.array(values[rows].reshape(-1), type=value_type)
        return pa.FixedSizeListArray.from_arrays(flat, len(data.target_names))

    labels = {"target_names": json.dumps(data.target_names), "target_unit": data.target_unit}
    table = pa.table(
        {
            "transcript_id": pa.array(data.transcript_ids[rows].tolist()),
            "gene_id": pa.array(data.gene_ids[rows].tolist()),
            "split": pa.array(data.split[rows].tolist()),
            "prediction": listed(predictions.astype(np.float32), pa.float32()),
            "target": listed(data.targets, pa.float32()),
            "target_mask": listed(data.target_mask, pa.bool_()),
        }
    ).replace_schema_metadata(labels)
    with tempfile.TemporaryDirectory(prefix="isoformer-predictions-") as local:
        path = Path(local, PREDICTIONS_KEY)
        pq.write_table(table, path)
        folder.storage.put_file(path, folder.prefix + PREDICTIONS_KEY)


def _require_same_data(settings: RunSettings, data: PinnedDataset, folder: RunFolder) -> None:
    if data.fingerprint != settings.data_fingerprint:
        raise FingerprintError(
            f"{folder.uri}: was trained on data {settings.data_fingerprint}, "
            f"the dataset here is {data.fingerprint}"
        )
