"""Predictions as a table: a row for every row of the input, with or without a prediction.

    transcript_id, status, reason, modalities, notes, log1p_tpm.<tissue> …

`status` and `notes` are those of the transcripts table; `reason` says why there is no prediction (null where
there is one), `modalities` what was read. A prediction is natural log(1 + TPM): the columns' names and the
Parquet metadata say so.

Shapes: N rows, K tissues.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv

from isoformer.errors import IsoformerError
from isoformer.predict.rows import QUARANTINED, PredictRow

if TYPE_CHECKING:
    from isoformer.sequence_model import SequenceModel

TARGET_PREFIX: Final = "log1p_tpm."
METADATA_KEY: Final = b"isoformer"
NO_MODALITY: Final = "no_modality_of_the_model"


@dataclass(frozen=True)
class PredictCounts:
    """`rows` = `predicted` + the sum of `not_predicted`; `status` and `modalities` count rows too."""

    rows: int = 0
    predicted: int = 0
    not_predicted: dict[str, int] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    modalities: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, table: pa.Table) -> PredictCounts:
        """Of a table of results."""
        reasons = table["reason"].to_pylist()
        return cls(
            rows=len(reasons),
            predicted=reasons.count(None),
            not_predicted=_counts(reason for reason in reasons if reason is not None),
            status=_counts(table["status"].to_pylist()),
            modalities=_counts(text for text in table["modalities"].to_pylist() if text),
        )

    def __add__(self, other: PredictCounts) -> PredictCounts:
        added: dict[str, Any] = {
            name: dict(sorted((Counter(getattr(self, name)) + Counter(getattr(other, name))).items()))
            for name in ("not_predicted", "status", "modalities")
        }
        return replace(self, rows=self.rows + other.rows, predicted=self.predicted + other.predicted, **added)

    def require_reconciled(self) -> None:
        """IsoformerError where rows were lost without a reason: a fault that must never be published."""
        if self.rows != self.predicted + sum(self.not_predicted.values()):
            raise IsoformerError(f"counts do not reconcile: {asdict(self)}; nothing was published")


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def result_schema(target_names: Sequence[str], metadata: Mapping[str, Any] | None = None) -> pa.Schema:
    """The table's columns; `metadata` goes into the file beside the unit."""
    text = [pa.field(name, pa.string(), nullable=name != "transcript_id") for name in _TEXT]
    values = [pa.field(TARGET_PREFIX + name, pa.float32()) for name in target_names]
    stated = {"unit": "natural log(1 + TPM)", **(metadata or {})}
    return pa.schema([*text, *values], metadata={METADATA_KEY: json.dumps(stated).encode()})


_TEXT: Final = ("transcript_id", "status", "reason", "modalities", "notes")


def predicted_table(model: SequenceModel, rows: Sequence[PredictRow], schema: pa.Schema) -> pa.Table:
    """The results of a batch of rows, in their order."""
    usable = [number for number, row in enumerate(rows) if row.sequences is not None]
    predicted_NK = np.full((len(rows), len(model.target_names)), np.nan, np.float32)
    unread = {number: row.reason for number, row in enumerate(rows)}
    modalities = [""] * len(rows)
    if usable:
        sequences = [row.sequences for row in rows if row.sequences is not None]
        predicted_NK[usable], read = model.predict_read(sequences)
        for number, problems, names in zip(usable, read.unusable, read.read, strict=True):
            modalities[number] = ",".join(names)
            unread[number] = "" if names else _reason(problems)
    return _table(rows, unread, modalities, predicted_NK, schema)


def predicted_tables(
    model: SequenceModel, batches: Iterable[Sequence[PredictRow]], schema: pa.Schema
) -> Iterator[pa.Table]:
    """A table a batch."""
    return (predicted_table(model, rows, schema) for rows in batches)


def _reason(problems: Mapping[Any, str]) -> str:
    """Why no modality of a row that has sequences is read."""
    listed = ", ".join(f"{modality}_{problem}" for modality, problem in problems.items())
    return listed or NO_MODALITY


def _table(
    rows: Sequence[PredictRow],
    unread: Mapping[int, str],
    modalities: Sequence[str],
    predicted_NK: NDArray[np.float32],
    schema: pa.Schema,
) -> pa.Table:
    reasons = [unread[number] or None for number in range(len(rows))]
    is_missing_N = np.array([reason is not None for reason in reasons], np.bool_)
    text = [
        [row.transcript_id for row in rows],
        [QUARANTINED if reason else row.status for row, reason in zip(rows, reasons, strict=True)],
        reasons,
        list(modalities),
        [row.notes for row in rows],
    ]
    values = [pa.array(column_N, pa.float32(), mask=is_missing_N) for column_N in predicted_NK.T]
    return pa.Table.from_arrays([*(pa.array(column, pa.string()) for column in text), *values], schema=schema)


class Writer(Protocol):
    """What takes tables one after the other."""

    def write_table(self, table: pa.Table) -> None: ...


@contextmanager
def opened_writer(path: Path, schema: pa.Schema) -> Iterator[Writer]:
    """A Parquet or, where the name ends so, a CSV file; null is an empty cell there."""
    if path.suffix == ".csv":
        with csv.CSVWriter(path, schema) as writer:
            yield writer
    else:
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            yield writer


def read_metadata(schema: pa.Schema) -> dict[str, Any]:
    """What `result_schema` put into a Parquet file."""
    found: dict[str, Any] = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    return found
