"""In-silico mutagenesis: every single-base change of a transcript's RNA or DNA window, through the model.

An RNA change inside the CDS is carried into the protein, so reference and alternative differ in both. The
DNA window stays as it is under a change of the RNA, and the other way round: a dataset's row does not say
where an exon lies. `variants.py` changes all three at once, from exon models.

Shapes: N changes, K tissues.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import polars as pl

from isoformer.errors import InputError
from isoformer.explain.edits import Edit, Effect, find_coding, rna_effect
from isoformer.explain.predictions import Progress, Reference, require_within
from isoformer.explain.regions import REGIONS, RnaRegions
from isoformer.explain.rows import DatasetRow
from isoformer.schema import Modality
from isoformer.sequence_model import SequenceModel, TranscriptSequences

BASES: Final = "ACGT"


@dataclass(frozen=True)
class Scope:
    """Which positions are changed. `start`, `end`: of the RNA from its first base, of DNA from the TSS.

    `start` null: all that the encoder reads. `stride`: every so manyth position.
    """

    modality: Modality
    region: str | None = None
    start: int | None = None
    end: int | None = None
    stride: int = 1


@dataclass(frozen=True)
class Mutations:
    """`unknown_bases`: positions in scope that are N, and so are not changed."""

    table: pl.DataFrame
    unknown_bases: int


@dataclass(frozen=True)
class Change:
    """One base at one position of the RNA or the window, from its first letter."""

    position: int
    base: str
    effect: Effect | None = None


def mutagenesis(
    model: SequenceModel,
    row: DatasetRow,
    scope: Scope,
    *,
    batch_size: int,
    max_predictions: int,
    progress: Progress | None = None,
) -> Mutations:
    """A row a position and base: what changes, and by how much the prediction moves.

    Columns: modality, position (RNA: 0-based; DNA: bases from the TSS), region, reference, alternative,
    consequence, reason, delta_mean, then `delta_<tissue>`, in log1p TPM. InputError where there is nothing to
    change; BudgetError, before anything is computed, for more than `max_predictions`.
    """
    sequences = row.sequences
    letters = _letters(model, sequences, scope)
    positions = _positions(model, letters, row.regions, scope)
    count = sum((letters[position] in BASES) * (len(BASES) - 1) for position in positions)
    changed: list[Modality] = ["rna", "protein"] if scope.modality == "rna" else ["dna"]
    read = [m for m in changed if m in model.modalities]
    require_within(model, sequences, count, read, max_predictions)
    changes = _changes(row, letters, positions, scope)
    alternatives = [_alternative(sequences, letters, change, scope.modality) for change in changes]
    reference = Reference(model, sequences)
    deltas_NK = reference.deltas(alternatives, batch_size=batch_size, progress=progress)
    unknown = sum(letters[position] not in BASES for position in positions)
    return Mutations(_table(model, row, letters, changes, scope, deltas_NK), unknown)


def _letters(model: SequenceModel, sequences: TranscriptSequences, scope: Scope) -> str:
    letters = sequences.of(scope.modality)
    if scope.modality not in model.modalities:
        raise InputError(
            "the model does not read it",
            field="modality",
            value=scope.modality,
            allowed=[m for m in model.modalities if m != "protein"],
        )
    if not letters:
        raise InputError(
            "the transcript has none", record=sequences.transcript_id, field="modality", value=scope.modality
        )
    return letters


def _positions(model: SequenceModel, letters: str, regions: RnaRegions | None, scope: Scope) -> Sequence[int]:
    """Places in `letters`. InputError for a region or positions that the sequence does not have."""
    center = len(letters) // 2 if scope.modality == "dna" else 0
    first, past = 0, len(letters)
    window = model.spec_of("dna").window_bases if scope.modality == "dna" else None
    if window is not None:
        first, past = max(first, center - window[0]), min(past, center + window[1])
    if scope.region is not None:
        first, past = _region_bounds(regions, scope)
    if scope.start is not None and scope.end is not None:
        if not first <= scope.start + center < scope.end + center <= past:
            raise InputError(
                "these are not all there",
                field="positions",
                value=f"{scope.start}:{scope.end}",
                allowed=f"{first - center}:{past - center}",
            )
        first, past = scope.start + center, scope.end + center
    return range(first, past, scope.stride)


def _region_bounds(regions: RnaRegions | None, scope: Scope) -> tuple[int, int]:
    if scope.modality != "rna" or regions is None:
        raise InputError(
            "only the RNA of a coding transcript has regions", field="region", value=scope.region
        )
    bounds = {name: (start, end) for name, start, end in regions.bounds() if end > start}
    if scope.region not in bounds:
        raise InputError(
            "the transcript has no such region", field="region", value=scope.region, allowed=bounds
        )
    return bounds[scope.region]


def _changes(row: DatasetRow, letters: str, positions: Sequence[int], scope: Scope) -> list[Change]:
    changes = [Change(p, base) for p in positions for base in BASES if letters[p] in BASES.replace(base, "")]
    if scope.modality == "dna":
        return changes
    regions, protein = row.regions, row.fields["protein"]
    coding = None
    if regions is not None and protein:
        coding = find_coding(letters, regions, protein, row.fields["chromosome"])
    return [
        replace(
            c, effect=rna_effect(letters, regions, coding, protein, Edit(c.position, c.position + 1, c.base))
        )
        for c in changes
    ]


def _alternative(
    sequences: TranscriptSequences, letters: str, change: Change, modality: Modality
) -> TranscriptSequences:
    if change.effect is not None:
        return replace(sequences, rna=change.effect.rna, protein=change.effect.protein)
    changed = Edit(change.position, change.position + 1, change.base).apply(letters)
    return replace(sequences, **{modality: changed})


def _table(
    model: SequenceModel,
    row: DatasetRow,
    letters: str,
    changes: Sequence[Change],
    scope: Scope,
    deltas_NK: np.ndarray,
) -> pl.DataFrame:
    center = len(letters) // 2 if scope.modality == "dna" else 0
    region_L = None if row.regions is None or scope.modality == "dna" else row.regions.of_letters()
    told = {
        "modality": [scope.modality] * len(changes),
        "position": [change.position - center for change in changes],
        "region": [None if region_L is None else REGIONS[region_L[change.position]] for change in changes],
        "reference": [letters[change.position] for change in changes],
        "alternative": [change.base for change in changes],
        "consequence": [change.effect.consequence if change.effect else None for change in changes],
        "reason": [change.effect.reason if change.effect else "" for change in changes],
    }
    schema = {name: pl.Int64 if name == "position" else pl.String for name in told}
    table = pl.DataFrame(told, schema=schema)
    return table.hstack(delta_columns(deltas_NK, model.target_names))


def delta_columns(deltas_NK: np.ndarray, target_names: Sequence[str]) -> list[pl.Series]:
    """`delta_mean`, then one column a tissue; NaN becomes null."""
    deltas = {"delta_mean": deltas_NK.mean(axis=1)}
    deltas |= {f"delta_{name}": deltas_NK[:, k] for k, name in enumerate(target_names)}
    return [pl.Series(name, values.astype(np.float32)).fill_nan(None) for name, values in deltas.items()]
