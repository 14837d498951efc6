"""A row to predict: a transcript's sequences as prepare would make them, or the reason why there are none.

Sequences that a user brings and gene models both go through `extraction`, the code that made the training
data: the same letters, crops and limits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Self

import pyarrow as pa

from isoformer.extraction import Policy, extract_row, extract_rows, plan_schema
from isoformer.schema import MODALITIES, Modality
from isoformer.sequence_model import TranscriptSequences
from isoformer.sequences import dna_window
from isoformer.sources.reference import Reference
from isoformer.splicing import QuarantinedError

QUARANTINED: Final = "quarantined"
ROWS_AT_ONCE: Final = 256
_BLANK: Final[Mapping[str, Any]] = dict.fromkeys(plan_schema(0).names)


@dataclass(frozen=True)
class PredictRow:
    """`sequences` None: it cannot be predicted, for `reason`. `status` and `notes` as in the transcripts
    table; of a row that is set aside the notes are the detail.
    """

    transcript_id: str
    sequences: TranscriptSequences | None
    status: str
    reason: str = ""
    notes: str = ""

    @classmethod
    def set_aside(cls, transcript_id: str, reason: str, detail: str) -> Self:
        """A row without a prediction."""
        return cls(transcript_id, None, QUARANTINED, reason, detail)


def given_row(transcript_id: str, sequences: Mapping[Modality, str | None], policy: Policy) -> PredictRow:
    """A row of sequences that somebody brings, in any spelling. `sequences`: by modality; empty is none."""
    given = {str(modality): sequences.get(modality) or None for modality in MODALITIES}
    planned: dict[str, Any] = {**_BLANK, "transcript_id": transcript_id, "gene_id": transcript_id}
    planned.update(given)
    try:
        finished, _ = extract_row(planned, None, policy)
    except QuarantinedError as problem:
        return PredictRow.set_aside(transcript_id, problem.reason, problem.detail)
    return _finished(finished, finished["dna"])


def planned_rows(plan: pa.Table, reference: Reference, policy: Policy) -> Iterator[PredictRow]:
    """Rows of gene models (`plan_schema`), cut from the reference, in the order of the plan."""
    for batch in plan.to_batches(max_chunksize=ROWS_AT_ONCE):
        yield from _cut_rows(batch.to_pylist(), reference, policy)


def prepared_row(row: Mapping[str, Any], dna: str | None) -> PredictRow:
    """A row of a transcripts shard: prepared before."""
    return _finished(row, dna)


def batches(rows: Iterator[PredictRow], size: int) -> Iterator[list[PredictRow]]:
    """So many rows at a time."""
    while batch := list(islice(rows, size)):
        yield batch


def _cut_rows(
    planned: Sequence[Mapping[str, Any]], reference: Reference, policy: Policy
) -> Iterator[PredictRow]:
    finished, quarantined, _ = extract_rows(planned, reference, policy)
    rows = {row["transcript_id"]: row for row in finished}
    aside = {row["transcript_id"]: row for row in quarantined}
    windows: dict[str, str] = {}
    for identifier in (str(row["transcript_id"]) for row in planned):
        if identifier in aside:
            problem = aside[identifier]
            yield PredictRow.set_aside(identifier, problem["reason"], problem["detail"])
            continue
        row = rows[identifier]
        digest = row["dna_digest"]
        if digest is not None and digest not in windows:
            windows[digest] = dna_window(reference, row)
        yield _finished(row, windows.get(digest))


def _finished(row: Mapping[str, Any], dna: str | None) -> PredictRow:
    identifier = str(row["transcript_id"])
    sequences = TranscriptSequences(identifier, dna or None, row["rna"] or None, row["protein"] or None)
    return PredictRow(identifier, sequences, row["status"], notes=row["notes"])
