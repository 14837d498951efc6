"""Baselines that know nothing of embeddings or of neural networks: ridge regression on lengths, on
composition, on means.

Transcript lengths alone explain much of expression, so every table carries them. `tabular_features` makes the
numbers from a transcripts table; `ridge_predictions` fits on the train rows, choosing the penalty by
cross-validation over train genes, and predicts the rest.

    length       log lengths of RNA, 5'UTR, CDS, 3'UTR and protein, and whether there is a coding region
    composition  the lengths, base shares of the RNA, GC of each region, CpG, and the 20 residues' shares

Shapes: N transcripts, F features, K tissues.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from isoformer.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from isoformer.training.data import PinnedDataset

Predict = Callable[[NDArray[np.int64]], NDArray[np.floating]]
"""From the rows that are fitted, the values of all rows (N, K)."""
BASELINES: Final = ("length", "composition")
WITHOUT_ENCODERS: Final = ("ridge_baseline", "nearest_gene")
"""Methods that read no embedding."""
BASES: Final = "ACGT"
RESIDUES: Final = "ACDEFGHIKLMNPQRSTVWY"
LENGTH_FEATURES: Final = (
    "log_rna_bases", "log_five_utr_bases", "log_cds_bases", "log_three_utr_bases",
    "log_protein_residues", "is_coding",
)  # fmt: skip
COMPOSITION_FEATURES: Final = (
    *(f"rna_{base}" for base in BASES),
    "five_utr_gc", "cds_gc", "three_utr_gc", "cpg_ratio",
    *(f"protein_{residue}" for residue in RESIDUES),
)  # fmt: skip
PENALTIES: Final = tuple(float(10.0**power) for power in np.arange(-1.0, 5.1, 0.5))
PENALTY_FOLDS: Final = 5


def tabular_features(table: pa.Table) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Names and values (N, F) of the length and composition features; a missing region or protein gives
    zeros.
    """
    columns = ("rna", "protein", "five_utr_bases", "cds_bases", "three_utr_bases")
    rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
    values = [
        _features_of(rna or "", protein or "", *(n or 0 for n in bases)) for rna, protein, *bases in rows
    ]
    names = LENGTH_FEATURES + COMPOSITION_FEATURES
    return names, np.array(values, dtype=np.float32).reshape(len(values), len(names))


def baseline_predictors(data: PinnedDataset) -> dict[tuple[str, str], Predict]:
    """By name and method, what every table of scores has beside a model: ridges on lengths and composition,
    and, where the dataset has sketches of its RNAs, the nearest gene's values.
    """
    found: dict[tuple[str, str], Predict] = {
        (name, "ridge_baseline"): ridge_predictor(baseline_inputs(data, name), data) for name in BASELINES
    }
    if data.rna_sketches is not None:
        found["rna", "nearest_gene"] = lambda fit_rows: nearest_gene_predictions(data, fit_rows)
    return found


def probe_predictors(data: PinnedDataset) -> dict[tuple[str, str], Predict]:
    """A ridge on the mean-pooled embeddings of all modalities; nothing where there are no embeddings."""
    if not data.states:
        return {}
    return {("+".join(data.states), "ridge_probe"): ridge_predictor(probe_inputs(data), data)}


def ridge_predictor(inputs: NDArray[np.float32], data: PinnedDataset) -> Predict:
    """`ridge_predictions` on these inputs (N, F)."""
    return lambda fit_rows: ridge_predictions(inputs, data, fit_rows)


def baseline_inputs(data: PinnedDataset, name: str) -> NDArray[np.float32]:
    """Features (N, F) of a named baseline: `length` or `composition`."""
    wanted = {"length": LENGTH_FEATURES, "composition": LENGTH_FEATURES + COMPOSITION_FEATURES}
    if name not in wanted:
        raise InputError("unknown baseline", field="baseline", value=name, allowed=wanted)
    return data.features[:, [data.feature_names.index(feature) for feature in wanted[name]]]


def probe_inputs(data: PinnedDataset) -> NDArray[np.float32]:
    """Mean-pooled embeddings of every modality side by side (N, F), each with a column saying whether it is
    there. A modality whose encoder learns with the model has no embeddings, and no part here.
    """
    parts = [(states.means(), states.sequence_of_N >= 0) for states in data.states.values()]
    return np.concatenate([np.column_stack([means, has]) for means, has in parts], axis=1, dtype=np.float32)


def ridge_predictions(
    inputs: NDArray[np.float32], data: PinnedDataset, fit_rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Ridge fitted on `fit_rows`, predictions for all rows (N, K), in the targets' own unit.

    Features and targets are standardised over the fitted rows; a target that is masked there counts as its
    tissue's mean.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    if len(fit_rows) == 0:
        raise InputError("no transcripts to fit the baseline on", field="split", value="train")
    scaler = StandardScaler().fit(inputs[fit_rows].astype(np.float64))
    scaled = scaler.transform(inputs.astype(np.float64))
    mean, sd = target_statistics(data, fit_rows)
    known = data.target_mask[fit_rows]
    standardised = np.where(known, (data.targets[fit_rows] - mean) / sd, 0.0)
    folds = _gene_folds(data.gene_ids[fit_rows])
    model = RidgeCV(alphas=PENALTIES, cv=folds).fit(scaled[fit_rows], standardised)
    return model.predict(scaled) * sd + mean


def nearest_gene_predictions(data: PinnedDataset, fit_rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Values (N, K) of the fitted transcript of another gene whose RNA is most like a row's: the one with the
    most equal slots of their MinHash sketches, several being averaged. A row that shares nothing with any,
    and a fitted row, get the fitted rows' mean. InputError where the dataset has no sketches.
    """
    if data.rna_sketches is None:
        raise InputError("the dataset has no sketches of its RNAs", field="rna_sketches")
    mean, _ = target_statistics(data, fit_rows)
    known = data.target_mask[fit_rows]
    values = np.where(known, data.targets[fit_rows], mean).astype(np.float64)
    equal_slots = _equal_slots_with(data.rna_sketches[fit_rows])
    genes = data.gene_ids[fit_rows]
    predicted = np.tile(mean.astype(np.float64), (len(data), 1))
    for row in np.setdiff1d(np.arange(len(data)), fit_rows):
        equal = equal_slots(data.rna_sketches[row])
        equal[genes == data.gene_ids[row]] = 0
        if equal.max(initial=0) > 0:
            predicted[row] = values[equal == equal.max()].mean(axis=0)
    return predicted


def _equal_slots_with(sketches_FS: NDArray[np.uint32]) -> Callable[[NDArray[np.uint32]], NDArray[np.int64]]:
    """How many slots of a sketch (S,) are equal to those of each of these, (F,). Slots are looked up in an
    order, so that a comparison costs what is equal, not all there is.
    """
    from isoformer.homology import EMPTY

    slot_S = np.arange(sketches_FS.shape[1], dtype=np.uint64) << np.uint64(32)
    codes = (sketches_FS | slot_S).ravel()
    order = np.argsort(codes, kind="stable")
    codes, owner = codes[order], order // max(1, sketches_FS.shape[1])

    def equal_slots(sketch_S: NDArray[np.uint32]) -> NDArray[np.int64]:
        wanted = (sketch_S | slot_S)[sketch_S != EMPTY]
        bounds = zip(*(np.searchsorted(codes, wanted, side) for side in ("left", "right")), strict=True)
        found = [owner[first:last] for first, last in bounds]
        return np.bincount(np.concatenate([*found, owner[:0]]), minlength=len(sketches_FS))

    return equal_slots


def target_statistics(
    data: PinnedDataset, rows: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation a tissue over the known targets of `rows`; a constant tissue keeps
    deviation 1.

    InputError where a tissue has no known target among them.
    """
    known = data.target_mask[rows]
    if not known.any(axis=0).all():
        empty = [data.target_names[k] for k in np.flatnonzero(~known.any(axis=0))]
        raise InputError("no transcript of the train split has a value", field="targets", value=empty)
    values = np.where(known, data.targets[rows], np.nan).astype(np.float64)
    mean, sd = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    return mean.astype(np.float32), np.where(sd > 1e-8, sd, 1.0).astype(np.float32)


def _gene_folds(genes: NDArray[np.str_]) -> Any:
    """Folds that keep a gene whole; None (efficient leave-one-out) where each gene has one transcript or few
    are there.
    """
    from sklearn.model_selection import GroupKFold

    distinct = len(np.unique(genes))
    if distinct == len(genes) or distinct < 2:
        return None
    folds = GroupKFold(n_splits=min(PENALTY_FOLDS, distinct), shuffle=True, random_state=0)
    return list(folds.split(genes, groups=genes))


def _features_of(rna: str, protein: str, five_utr: int, cds: int, three_utr: int) -> list[float]:
    lengths = [len(rna), five_utr, cds, three_utr, len(protein)]
    bases = rna.upper().replace("U", "T")
    regions = _regions_from_the_end(bases, five_utr, cds, three_utr)
    residues = protein.upper()
    return [
        *(float(np.log1p(length)) for length in lengths),
        float(cds > 0),
        *(_share(bases, base) for base in BASES),
        *(_share(region, "G") + _share(region, "C") for region in regions),
        _cpg_ratio(bases),
        *(_share(residues, residue) for residue in RESIDUES),
    ]


def _regions_from_the_end(bases: str, five_utr: int, cds: int, three_utr: int) -> tuple[str, str, str]:
    """5'UTR, CDS and 3'UTR counted from the 3' end, because a long RNA is cropped on its left."""
    cds_end = max(0, len(bases) - three_utr)
    cds_start = max(0, cds_end - cds)
    return bases[max(0, cds_start - five_utr) : cds_start], bases[cds_start:cds_end], bases[cds_end:]


def _share(text: str, letter: str) -> float:
    return text.count(letter) / len(text) if text else 0.0


def _cpg_ratio(bases: str) -> float:
    """CpG observed over expected from the base shares."""
    expected = bases.count("C") * bases.count("G") / max(1, len(bases))
    return bases.count("CG") / expected if expected else 0.0
