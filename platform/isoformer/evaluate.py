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
from isoformer.baselines import BASELINES, baseline_inputs, probe_inputs, ridge_predictions
from isoformer.errors import FingerprintError, InputError
from isoformer.metrics import SCORES, regression_metrics
from isoformer.schema import SPLITS
from isoformer.scores import Predicted, ScoreTable, score_row
from isoformer.storage import open_storage
from isoformer.training.data import PinnedDataset, load_dataset
from isoformer.training.loop import device_named, predict
from isoformer.training.runs import RunFolder, RunSettings, without_nan

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


def evaluate(
    root: str, run: str, *, split: str = "test", draws: int = 1000, data: PinnedDataset | None = None
) -> Evaluation:
    """Score `run` on `split` and write both files beside it.

    `data` saves reading the dataset again. StorageError where the run is not there or not finished;
    FingerprintError where the dataset is no longer the one it was trained on; InputError where the split is
    empty.
    """
    folder = RunFolder(open_storage(root), run)
    settings = folder.settings()
    model = folder.model().to(device_named("auto"))
    data = data or load_dataset(root, settings.train.keys, encoders=settings.train.model.encoders)
    data = data.subset(settings.train.model.modalities)
    _require_same_data(settings, data, folder)
    rows = data.rows(split)
    without = data.require_inputs(data.modalities, (split,))
    predictions = predict(model, data, np.arange(len(data)))
    methods = [("+".join(data.modalities), settings.train.model.fusion, predictions), *_ridges(data, split)]
    evaluation = Evaluation(
        run=run,
        split=split,
        data_fingerprint=data.fingerprint,
        run_fingerprint=settings.fingerprint,
        transcripts_by_split={name: int((data.split == name).sum()) for name in SPLITS},
        without_any_modality=without,
        table=_table(data, methods, rows, split, draws),
        per_tissue=tuple(score for method in methods for score in _tissue_scores(data, *method, rows)),
    )
    _write_predictions(folder, data, predictions, rows)
    text = json.dumps(without_nan(evaluation.model_dump(mode="json")), indent=2)
    folder.storage.write_bytes(folder.prefix + EVALUATION_KEY, text.encode())
    return evaluation


def read_evaluation(root: str, run: str) -> Evaluation:
    """The evaluation written beside a run. StorageError where there is none."""
    folder = RunFolder(open_storage(root), run)
    return Evaluation.model_validate_json(folder.storage.read_bytes(folder.prefix + EVALUATION_KEY))


Method = tuple[str, str, NDArray[np.floating]]


def _ridges(data: PinnedDataset, split: str) -> list[Method]:
    if split == "train":
        problem = "the baselines need a split they do not fit on"
        raise InputError(problem, field="split", value=split, allowed="test, validation")
    others = ("train", "validation") if split == "test" else ("train",)
    fit_rows = np.flatnonzero(np.isin(data.split, others))
    inputs = {name: baseline_inputs(data, name) for name in BASELINES}
    ridges: list[Method] = [
        (name, "ridge_baseline", ridge_predictions(x, data, fit_rows)) for name, x in inputs.items()
    ]
    if not data.states:
        return ridges
    probe = ridge_predictions(probe_inputs(data), data, fit_rows)
    return [*ridges, ("+".join(data.states), "ridge_probe", probe)]


def _table(
    data: PinnedDataset, methods: Sequence[Method], rows: NDArray[np.int64], split: str, draws: int
) -> ScoreTable:
    scored = []
    for name, method, predictions in methods:
        from_encoders = method != "ridge_baseline"
        predicted = [Predicted(predictions, rows)]
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
