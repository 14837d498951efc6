"""Predict a file: rows of an input, in batches, into one Parquet or CSV file that appears whole or not at
all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import pyarrow.parquet as pq

from isoformer.errors import ConfigError, StorageError
from isoformer.predict.device import require_device
from isoformer.predict.inputs import PredictInput
from isoformer.predict.results import (
    PredictCounts,
    opened_writer,
    predicted_tables,
    result_schema,
)
from isoformer.predict.rows import PredictRow, batches
from isoformer.sequence_model import SequenceModel
from isoformer.storage import Storage, explain_local, open_storage

FILE_SUFFIXES: Final = (".parquet", ".csv")
OTHER_FILES: Final = (
    ".tsv",
    ".txt",
    ".json",
    ".xlsx",
    ".pq",
    ".gz",
    ".zip",
    ".feather",
    ".fa",
    ".gtf",
    ".vcf",
)
"""Endings that somebody gives who wants a file of a kind that is not written."""


@dataclass(frozen=True)
class PredictRequest:
    """What the verb is asked for. `source`: a model's address, null for the configured run; the last two
    count where the output is a folder of parts. ConfigError for a device that is not there.
    """

    given: PredictInput
    output: str
    source: str | None = None
    device: str = "cpu"
    batch_size: int = 32
    workers: int = 1
    rows_per_part: int = 512

    def __post_init__(self) -> None:
        require_device(self.device)


def predict_file(
    model: SequenceModel,
    rows: Iterator[PredictRow],
    output: str,
    *,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> PredictCounts:
    """Predict every row into `output` (a path or s3:// address ending in .parquet or .csv).

    Memory holds a batch. `progress` is told how many rows are done.
    """
    storage, name = output_place(output)
    schema = result_schema(model.target_names, model_metadata(model))
    counts = PredictCounts()
    with tempfile.TemporaryDirectory(prefix="isoformer-predict-") as folder:
        local = Path(folder, name)
        with explain_local(local), opened_writer(local, schema) as writer:
            for table in predicted_tables(model, batches(rows, batch_size), schema):
                writer.write_table(table)
                counts += PredictCounts.of(table)
                if progress is not None:
                    progress(counts.rows)
        counts.require_reconciled()
        _require_written(local, counts, f"{storage.uri}/{name}")
        storage.put_file(local, name)
    return counts


def is_file(output: str) -> bool:
    """Whether the output is one file, and not a folder of parts. ConfigError for a file of another kind."""
    if output.endswith(FILE_SUFFIXES):
        return True
    if output.lower().endswith((*FILE_SUFFIXES, *OTHER_FILES)):
        raise ConfigError(
            f"output {output}: must end in one of {', '.join(FILE_SUFFIXES)}, or be a folder's name"
        )
    return False


def output_place(output: str) -> tuple[Storage, str]:
    """The storage and the key of an output file. ConfigError for another kind of name."""
    if not is_file(output):
        raise ConfigError(f"output {output}: must end in one of {', '.join(FILE_SUFFIXES)}")
    if "://" in output:
        folder, _, name = output.rpartition("/")
        return open_storage(folder), name
    path = PurePosixPath(output)
    return open_storage(str(path.parent)), path.name


def model_metadata(model: SequenceModel) -> dict[str, Any]:
    """What every file of predictions says about the model."""
    return {
        "model": model.fingerprint,
        "run": model.origin.run,
        "run_fingerprint": model.origin.fingerprint,
        "labels": model.origin.label_provenance,
        "encoders": {modality: encoder.made.key for modality, encoder in model.encoders.items()},
    }


def _require_written(local: Path, counts: PredictCounts, uri: str) -> None:
    if local.suffix == ".parquet" and pq.read_metadata(local).num_rows != counts.rows:
        raise StorageError(
            f"{uri}: the file read back has other rows than were written; nothing was published"
        )
