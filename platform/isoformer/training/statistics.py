"""What the train split fixes before the first step: means and deviations, and the redrawn validation genes.

Shapes: D width of a modality, K tissues.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isoformer.baselines import target_statistics
from isoformer.errors import InputError
from isoformer.model import ModelConfig, Standardisation
from isoformer.schema import Modality
from isoformer.training.data import PinnedDataset, SequenceStates, StreamedStates


def redrawn_validation(data: PinnedDataset, fraction: float, seed: int) -> PinnedDataset:
    """The paper's validation: a share of the train genes, drawn anew by seed. The dataset's own validation
    split stays out of the fit under the name "unused"."""
    genes = np.unique(data.gene_ids[data.rows("train")])
    count = max(1, round(fraction * len(genes)))
    if count >= len(genes):
        raise InputError(
            "too few train genes to draw validation genes from", field="gene_id", value=len(genes)
        )
    chosen = np.random.default_rng([seed, 20_240_614]).choice(genes, size=count, replace=False)
    split = np.where(data.split == "validation", "unused", data.split)
    return data.with_split(np.where((split == "train") & np.isin(data.gene_ids, chosen), "validation", split))


def train_statistics(
    data: PinnedDataset, config: ModelConfig
) -> tuple[Standardisation, dict[Modality, Standardisation]]:
    """Targets' and, where asked for, input features' mean and deviation over the train split."""
    rows = data.rows("train")
    targets = Standardisation(*target_statistics(data, rows))
    if not config.standardise_inputs:
        return targets, {}
    return targets, {
        m: _feature_statistics(data.states[m], rows) for m in config.modalities if m in data.states
    }


def _feature_statistics(states: SequenceStates | StreamedStates, rows: NDArray[np.int64]) -> Standardisation:
    """Over the positions of the distinct sequences that these rows have, one sequence after the other in
    float64.
    """
    total, squares, count = np.zeros(states.width), np.zeros(states.width), 0
    for values_LD in states.distinct(rows):
        values = values_LD.astype(np.float64)
        total, squares, count = (
            total + values.sum(axis=0),
            squares + (values**2).sum(axis=0),
            count + len(values),
        )
    mean = total / max(1, count)
    sd = np.sqrt(np.maximum(squares / max(1, count) - mean**2, 0.0))
    is_spread = sd > 1e-6 * np.maximum(1.0, np.abs(mean))
    return Standardisation(mean.astype(np.float32), np.where(is_spread, sd, 1.0).astype(np.float32))
