"""Scores of a run in MLflow: a few numbers as metrics, everything a tissue or a method as tables."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

from isoformer.tracking.tracker import Tracker

if TYPE_CHECKING:
    from isoformer.evaluate import Evaluation
    from isoformer.scores import ScoreTable

SCORES = ("r2", "spearman", "pearson")
WITHIN = ("isoform_order", "tissue_profile")


def log_evaluation(tracker: Tracker, run: str, evaluation: Evaluation) -> None:
    """`test_r2`, `_spearman`, `_pearson`, `_isoform_order`, `_tissue_profile` of the model; its tables as
    artefacts.
    """
    model = evaluation.table.rows[0]
    values = {f"{evaluation.split}_{score}": getattr(model, score).value for score in (*SCORES, *WITHIN)}
    tracker.log_metrics(run, {name: value for name, value in values.items() if value is not None})
    tracker.set_tags(run, {"label_provenance": model.label_provenance, "protocol": evaluation.table.protocol})
    tracker.log_text(run, evaluation.table.to_csv(), "evaluation/scores.csv")
    tracker.log_text(run, _per_tissue(evaluation), "evaluation/per_tissue.csv")
    details = [one.model_dump(mode="json") for one in evaluation.details]
    tracker.log_text(run, json.dumps(details, indent=1), "evaluation/within.json")


def log_ablation(tracker: Tracker, run: str, table: ScoreTable) -> None:
    """The ablation's table as an artefact."""
    tracker.log_text(run, table.to_csv(), "evaluation/ablation.csv")


def _per_tissue(evaluation: Evaluation) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["name", "method", "tissue", *SCORES], lineterminator="\n")
    writer.writeheader()
    writer.writerows(score.model_dump() for score in evaluation.per_tissue)
    return out.getvalue()
