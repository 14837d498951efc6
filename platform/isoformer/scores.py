"""A table of scores that can be shown: every row says what was predicted from what, on which labels, how
surely.

`score_row` scores one way of predicting; a `ScoreTable` holds the rows and writes itself as JSON, CSV or
Markdown. Neither knows where predictions come from: `evaluate.py` and `ablation.py` do.

Shapes: N transcripts, K tissues.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from isoformer.baselines import target_statistics
from isoformer.isoform_metrics import isoform_metrics, specificity_metrics
from isoformer.metrics import SCORES, RegressionMetrics, gene_bootstrap, regression_metrics
from isoformer.schema import Modality
from isoformer.training.data import PinnedDataset

WITHIN: Final = ("isoform_order", "tissue_profile")
"""What a row has beside `SCORES`: no mean over tissues would show it."""


class Score(BaseModel):
    """A mean over tissues with its 95% interval over genes; `sd` is the spread over folds or seeds, where
    there are some.

    Null where undefined.
    """

    model_config = ConfigDict(frozen=True)
    value: float | None
    low: float | None
    high: float | None
    sd: float | None = None
    undefined_tissues: int = 0


class ScoreRow(BaseModel):
    """One way of predicting. `trained` is what its encoders are: "pre-trained", "supervised", "random",
    "none", or several joined by "+"; `repeats` counts the folds or seeds that `sd` is over.

    `isoform_order` and `tissue_profile` are what a mean over tissues hides (`isoform_metrics`: concordance
    within genes, chance 0.5; profile within transcripts, chance 0): means over folds or seeds, no interval.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    method: str
    modalities: tuple[Modality, ...]
    encoders: dict[Modality, str]
    trained: str
    label_provenance: str
    genes: int
    transcripts: int
    repeats: int
    r2: Score
    spearman: Score
    pearson: Score
    isoform_order: Score = Score(value=None, low=None, high=None)
    tissue_profile: Score = Score(value=None, low=None, high=None)


class ScoreTable(BaseModel):
    """Rows on the same transcripts, and how they were split ("5 folds by gene", "the dataset's test
    split").
    """

    model_config = ConfigDict(frozen=True)
    protocol: str
    data_fingerprint: str
    target_unit: str
    rows: tuple[ScoreRow, ...]

    def flat(self) -> list[dict[str, str | int | float | None]]:
        """A flat mapping a row, for CSV and data frames."""
        return [_flat(row, self.protocol) for row in self.rows]

    def to_csv(self) -> str:
        out = io.StringIO()
        flat = self.flat()
        writer = csv.DictWriter(out, fieldnames=list(flat[0]) if flat else ["name"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
        return out.getvalue()

    def to_markdown(self) -> str:
        titles = ["from", "method", "encoders", "R² [95%]", "Spearman [95%]", "Pearson [95%]"]
        columns = [*titles, "genes", "transcripts"]
        head = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        lines = [_markdown(row) for row in self.rows]
        labels = ", ".join(dict.fromkeys(row.label_provenance for row in self.rows))
        return "\n".join([*head, *lines, "", f"Protocol: {self.protocol}. Labels: {labels}."]) + "\n"


@dataclass(frozen=True)
class Predicted:
    """Predictions (N, K) of one repeat for the rows `scored`, in the folds they were predicted in (one or
    several).
    """

    predictions: NDArray[np.floating]
    scored: NDArray[np.int64]
    folds: tuple[NDArray[np.int64], ...] = ()


def score_row(
    data: PinnedDataset,
    name: str,
    method: str,
    repeats: Sequence[Predicted],
    *,
    draws: int = 500,
    uses_encoders: bool = True,
) -> ScoreRow:
    """Score repeats of one method, all on the same rows: the mean over repeats, the mean of their intervals
    over genes (the same genes drawn for each), the spread over all folds (or, without folds, over repeats).
    """
    metrics = [_metrics(data, repeat.predictions, repeat.scored) for repeat in repeats]
    folds = [(repeat.predictions, fold) for repeat in repeats for fold in repeat.folds]
    scored_apart = folds or [(repeat.predictions, repeat.scored) for repeat in repeats]
    parts = [_metrics(data, predictions, fold) for predictions, fold in scored_apart]
    within = [_within(data, predictions, fold) for predictions, fold in scored_apart]
    rows = repeats[0].scored
    intervals = [
        gene_bootstrap(
            data.targets[rows],
            one.predictions[rows],
            data.gene_ids[rows],
            data.target_mask[rows],
            draws=draws,
        )
        for one in repeats
    ]
    scores = {}
    for score in SCORES:
        values = np.array([part.mean[score] for part in parts])
        scores[score] = Score(
            value=_number(np.mean([one.mean[score] for one in metrics])),
            low=_number(np.mean([interval[score].low for interval in intervals])),
            high=_number(np.mean([interval[score].high for interval in intervals])),
            sd=_number(values.std(ddof=1)) if len(values) > 1 else None,
            undefined_tissues=metrics[0].undefined[score],
        )
    modalities = data.modalities if uses_encoders else ()
    return ScoreRow(
        name=name,
        method=method,
        modalities=modalities,
        encoders={modality: data.encoder_names[modality] for modality in modalities},
        trained="+".join(dict.fromkeys(data.encoder_trained[m] for m in modalities)) or "none",
        label_provenance=data.label_provenance,
        genes=len(np.unique(data.gene_ids[rows])),
        transcripts=len(rows),
        repeats=len(parts),
        isoform_order=_mean_score([one[0] for one in within]),
        tissue_profile=_mean_score([one[1] for one in within]),
        **scores,
    )


def _within(
    data: PinnedDataset, predictions: NDArray[np.floating], rows: NDArray[np.int64]
) -> tuple[float | None, float | None]:
    """Concordance within genes and profile within transcripts of one fold."""
    targets, predicted, mask = data.targets[rows], predictions[rows], data.target_mask[rows]
    genes = data.gene_ids[rows]
    mean, _ = target_statistics(data, np.setdiff1d(np.arange(len(data)), rows))
    isoforms = isoform_metrics(targets, predicted, mask, genes, draws=0)
    tissues = specificity_metrics(targets, predicted, mask, genes, tissue_means=mean, draws=0)
    return isoforms.concordance.value, tissues.profile.value


def _mean_score(values: Sequence[float | None]) -> Score:
    known = np.array([value for value in values if value is not None])
    sd = _number(known.std(ddof=1)) if len(known) > 1 else None
    return Score(value=_number(known.mean()) if len(known) else None, low=None, high=None, sd=sd)


def _metrics(
    data: PinnedDataset, predictions: NDArray[np.floating], rows: NDArray[np.int64]
) -> RegressionMetrics:
    mask = data.target_mask[rows]
    return regression_metrics(data.targets[rows], predictions[rows], mask, data.target_names)


def _number(value: float | np.floating) -> float | None:
    return float(value) if np.isfinite(value) else None


def _flat(row: ScoreRow, protocol: str) -> dict[str, str | int | float | None]:
    flat: dict[str, str | int | float | None] = {
        "name": row.name,
        "method": row.method,
        "modalities": "+".join(row.modalities),
        "encoders": " ".join(f"{modality}={name}" for modality, name in row.encoders.items()),
        "trained": row.trained,
        "labels": row.label_provenance,
        "protocol": protocol,
        "genes": row.genes,
        "transcripts": row.transcripts,
        "repeats": row.repeats,
    }
    for name in SCORES:
        score: Score = getattr(row, name)
        flat |= {f"{name}{suffix}": value for suffix, value in _fields(score).items()}
    for name in WITHIN:
        score = getattr(row, name)
        flat |= {name: score.value, f"{name}_sd": score.sd}
    return flat


def _fields(score: Score) -> dict[str, float | int | None]:
    spread = {"": score.value, "_low": score.low, "_high": score.high, "_sd": score.sd}
    return {**spread, "_undefined_tissues": score.undefined_tissues}


def _markdown(row: ScoreRow) -> str:
    encoders = f"{', '.join(row.encoders.values()) or 'no encoder'} ({row.trained})"
    scores = [_shown(score) for score in (row.r2, row.spearman, row.pearson)]
    cells = [row.name, row.method, encoders, *scores, str(row.genes), str(row.transcripts)]
    return "| " + " | ".join(cells) + " |"


def _shown(score: Score) -> str:
    if score.value is None:
        return f"undefined ({score.undefined_tissues} tissues)"
    spread = f" ± {score.sd:.3f}" if score.sd is not None else ""
    has_interval = score.low is not None and score.high is not None
    interval = f" [{score.low:.3f}, {score.high:.3f}]" if has_interval else ""
    return f"{score.value:.3f}{spread}{interval}"
