"""The doors of predict: FASTA, gene models, tables and Parquet, a shard of a prepared dataset.

Each row that comes out has an id and sequences over their alphabets, or a reason why it has none.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz.door import Door
from fuzz.root_doors import prepared_files, shard_bytes
from fuzz.seeds import (
    DAMAGE,
    GENOME,
    GFF3,
    GTF,
    JSON_ROWS,
    MODEL_WORDS,
    TABLE_WORDS,
    made_parquet,
    packed_seeds,
    parquet_bytes,
)
from isoformer.extraction import Policy
from isoformer.predict.inputs import PredictInput
from isoformer.schema import MODALITIES, STATUSES

POLICY = Policy(16, 200, 0.5, "quarantine", "known_selenoproteins")


def predict_fasta(data: bytes, folder: Path) -> None:
    _predict(folder, "in.fa", data, {"protein": ">T1 x\nMAK\n>T9\nMA*\n"}, _fasta_count)


def predict_gtf(data: bytes, folder: Path) -> None:
    (folder / "genome.fa").write_bytes(GENOME)
    _predict(folder, "in.gtf", data, {}, None)


def predict_csv(data: bytes, folder: Path) -> None:
    _predict(folder, "in.csv", data, {}, None)


def predict_parquet(data: bytes, folder: Path) -> None:
    _predict(folder, "in.parquet", data, {}, None)


def predict_rows(data: bytes, folder: Path) -> None:
    """Parquet made of rows in JSON."""
    made_parquet(data, folder / "made.parquet")
    _predict(
        folder, "in.parquet", (folder / "made.parquet").read_bytes(), {}, lambda _: len(json.loads(data))
    )


def predict_prepared(data: bytes, folder: Path) -> None:
    """A shard of a dataset in its root."""
    for name, content in prepared_files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    _predict(folder, "transcripts/shard-00000.parquet", data, {}, None)


def _predict(
    folder: Path, name: str, data: bytes, beside: dict[str, str], count: Callable[[bytes], int] | None
) -> None:
    (folder / name).write_bytes(data)
    given: dict[str, Any] = {}
    for modality, text in beside.items():
        (folder / f"{modality}.fa").write_text(text)
        given[modality] = str(folder / f"{modality}.fa")
    reference = str(folder / "genome.fa") if (folder / "genome.fa").exists() else None
    rows = list(PredictInput(str(folder / name), reference, **given).rows(POLICY))
    alphabets = {"dna": "ACGTN", "rna": "ACGTN", "protein": "ACDEFGHIKLMNPQRSTVWYBJOUXZ"}
    for row in rows:
        assert (row.sequences is None) == bool(row.reason), row
        assert row.sequences is None or row.transcript_id.strip(), "a row without an id"
        assert row.status in STATUSES, row.status
        for modality in MODALITIES if row.sequences else ():
            assert set(row.sequences.of(modality) or "") <= set(alphabets[modality]), (modality, row)  # type: ignore[union-attr]
    if count is not None:
        assert len(rows) >= count(data), f"{len(rows)} rows of {count(data)} records"


def _fasta_count(data: bytes) -> int:
    text = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    return len(re.findall(rb"(?:^|[\r\n])>", text))


FASTA = b">T1 first\nACGUACGT\nACGT\n>ENSP1|ENST2.1|ENSG3\nACGTNNRY\n>T3\nACGT\n"


CSV = b"transcript_id,rna,protein\nT1,ACGU,MAK\nT2,,MA*\nT1,ACG,\n,ACG,\n"

DOORS = (
    Door(
        "predict fasta",
        predict_fasta,
        (*packed_seeds(FASTA), FASTA.replace(b"T3", b"")),
        (b">", b"\n>", b"\r", b"\0", b"\xff", b"|", b"ENST", "ß".encode(), b"*"),
        ("in.fa",),
    ),
    Door("predict gtf", predict_gtf, (GTF, GFF3), MODEL_WORDS, ("in.gtf", "transcript")),
    Door("predict csv", predict_csv, packed_seeds(CSV), TABLE_WORDS, ("in.csv",)),
    Door("predict parquet", predict_parquet, (parquet_bytes(JSON_ROWS),), DAMAGE, ("in.parquet",)),
    Door(
        "predict rows",
        predict_rows,
        (json.dumps(JSON_ROWS).encode(),),
        (*TABLE_WORDS, b"null", b"true", b"[]", b"{}"),
        ("in.parquet",),
    ),
    Door(
        "predict shard",
        predict_prepared,
        (shard_bytes(),),
        DAMAGE,
        ("shard-00000.parquet", "genome", "reference", ".fa.gz"),
    ),
)
