"""The doors of expression and of tables that bring their own sequences: GCT, TSV, CSV, Parquet.

What was accepted is compared with what a few plain lines of Python read from the same bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from pathlib import Path

from fuzz.door import Door
from fuzz.prepared import check_prepared
from fuzz.seeds import (
    AWKWARD,
    GENOME,
    JSON_ROWS,
    TABLE_WORDS,
    made_parquet,
    packed_seeds,
    parquet_bytes,
    unpacked,
)
from isoformer.schema import TISSUES
from isoformer.sources.expression import read_expression
from isoformer.sources.gct import read_sample_tissues
from isoformer.sources.tissues import group_tissue
from prepare.tiny import PROTEIN, RNA

Exons = dict[tuple[str, str], list[tuple[int, int]]]


def gct(data: bytes, folder: Path) -> None:
    """Means over the samples of each tissue, as plain Python adds them up."""
    (folder / "x.gct").write_bytes(data)
    (folder / "samples.tsv").write_bytes(SAMPLES)
    found = read_expression(folder / "x.gct", sample_tissues=folder / "samples.tsv")
    if re.search(rb"\r(?!\n)", unpacked(data)):
        return  # the header ends at a newline, Arrow's lines at either
    lines = [line for line in re.split(r"\r?\n", unpacked(data).decode())[3:] if line]
    tissue_of = {"S1": "Liver", "S2": "Liver", "S3": "Brain"}
    header = unpacked(data).decode().split("\n")[2].rstrip("\r").split("\t")
    assert found.transcript_ids == [line.split("\t")[0] for line in lines]
    for line, row in zip(lines, found.tpm, strict=True):
        sums: dict[str, list[float]] = defaultdict(list)
        for sample, text in zip(header[2:], line.split("\t")[2:], strict=True):
            if sample in tissue_of and text.lower() not in MISSING:
                sums[tissue_of[sample]].append(_tpm(text))
        for tissue, value in zip(found.target_names, row, strict=True):
            expected = sum(sums[tissue]) / len(sums[tissue]) if sums[tissue] else math.nan
            assert _same(value, expected), f"{tissue}: {value}, not {expected}"


def sample_table(data: bytes, folder: Path) -> None:
    (folder / "samples.tsv").write_bytes(data)
    found = read_sample_tissues(folder / "samples.tsv")
    assert all(isinstance(sample, str) and sample for sample in found), "a sample without a name"
    assert set(found.values()) <= {*TISSUES, None}
    for header, *cells in _cells(unpacked(data)):
        samples = next(header.index(name) for name in ("SAMPID", "SampleID", "sample_id") if name in header)
        detailed = next(header.index(name) for name in ("SMTSD", "Tissue", "tissue") if name in header)
        assert found == {row[samples]: group_tissue(row[detailed]) for row in cells}


def wide(data: bytes, folder: Path) -> None:
    """A wide table, as text."""
    (folder / "expression.tsv").write_bytes(data)
    found = read_expression(folder / "expression.tsv")
    assert all(isinstance(name, str) and name.strip() for name in found.transcript_ids), "empty transcript id"
    for header, *cells in _cells(unpacked(data)):
        place = next(
            header.index(name)
            for name in ("transcript_id", "transcript_id_gtex", "Name", "transcript")
            if name in header
        )
        assert found.transcript_ids == [row[place] for row in cells]
        for row, values in zip(cells, found.tpm, strict=True):
            for tissue, value in zip(found.target_names, values, strict=True):
                text = row[header.index(tissue)].strip()
                expected = math.nan if text.lower() in MISSING else _tpm(text)
                assert _same(value, expected), f"{tissue}: {value}, not {text!r}"


def _cells(text: bytes) -> list[list[list[str]]]:
    """Header and rows, as one entry; none where quotes make reading them a matter of dialect."""
    if b'"' in text or b"\r" in text or b"\0" in text:
        return []
    lines = [line for line in text.decode("utf-8-sig").split("\n") if line]
    delimiter = "\t" if lines[0].count("\t") >= lines[0].count(",") else ","
    return [[line.split(delimiter) for line in lines]]


def _tpm(text: str) -> float:
    value = float(text)
    assert value >= 0 and not math.isinf(value), f"{text!r} was taken for a TPM"
    return value


def _same(one: float, other: float) -> bool:
    return (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=1e-9)


def _number(given: object) -> object:
    """As Arrow has a truth value beside numbers."""
    return float(given) if isinstance(given, bool) else given


def wide_parquet(data: bytes, folder: Path) -> None:
    """The bytes of a Parquet file."""
    (folder / "expression.parquet").write_bytes(data)
    found = read_expression(folder / "expression.parquet")
    assert all(isinstance(name, str) and name.strip() for name in found.transcript_ids), "empty transcript id"
    assert not (found.tpm < 0).any() and not (found.tpm == math.inf).any()


def wide_made_parquet(data: bytes, folder: Path) -> None:
    """A Parquet file made of rows in JSON: columns of any type."""
    rows = made_parquet(data, folder / "made.parquet")
    found = read_expression(folder / "made.parquet")
    assert found.transcript_ids == [str(row["transcript_id"]) for row in rows]
    assert all(name.strip() for name in found.transcript_ids), "empty transcript id"
    for row, values in zip(rows, found.tpm, strict=True):
        for tissue, value in zip(found.target_names, values, strict=True):
            given = row.get(tissue)
            missing = given is None or str(given).strip().lower() in MISSING
            assert _same(value, math.nan if missing else _tpm(str(_number(given)))), (
                f"{tissue}: {value}, not {given!r}"
            )


def plain(data: bytes, folder: Path) -> None:
    """A table of one's own, through the whole of prepare."""
    (folder / "table.csv").write_bytes(data)
    check_prepared(folder, {"route": "table", "table": str(folder / "table.csv")}, data)


def plain_made_parquet(data: bytes, folder: Path) -> None:
    made_parquet(data, folder / "table.parquet")
    check_prepared(folder, {"route": "table", "table": str(folder / "table.parquet")}, data)


def published(data: bytes, folder: Path) -> None:
    """The published layout, with a genome, through the whole of prepare."""
    (folder / "table.csv").write_bytes(data)
    (folder / "genome.fa").write_bytes(GENOME)
    settings = {
        "route": "published",
        "table": str(folder / "table.csv"),
        "reference": [str(folder / "genome.fa")],
    }
    check_prepared(folder, settings, data)


GCT = b"""#1.2
2\t3
transcript_id\tgene_id\tS1\tS2\tS3
ENST1\tENSG1\t1.5\t2.5\t10
ENST2\tENSG2\t0\tNA\t3e2
"""


SAMPLES = b"SAMPID\tSMTSD\nS1\tLiver\nS2\tLiver\nS3\tBrain - Cortex\nS4\tCells - Leukemia cell line (CML)\n"


WIDE = b"transcript_id\tLiver\tBrain\nENST1\t1.5\t0\nENST2\tNA\t2e3\nENST3\t\t4\n"


PLAIN = (
    f"transcript_id,gene_id,rna,protein,dna,Liver,Brain\nT1,G1,{RNA},{PROTEIN},ACGTAC,1,2\n"
    "T2,G2,ACGU,,,0,NA\n"
)


PUBLISHED = (
    "transcript_id_gtex,gene_id_gtex,split,chr,strand,start,end,gene_name,Liver,Brain,RNA,5UTR,CDS,3UTR,"
    "Protein\n"
    f"ENST1.1,ENSG1,train,chr1,+,6,31,A,1,2,{RNA},CC,ATGGCTAAATGA,CC,{PROTEIN}\n"
    f"ENST2.1,ENSG2,test,chr2,-,6,31,A,0,NA,{RNA},CC,ATGGCTAAATGA,CC,{PROTEIN}\n"
)


MISSING = {"", "na", "nan", "null", "none"}


DOORS = (
    Door("gct", gct, packed_seeds(GCT), (*TABLE_WORDS, b"#1.2"), ("x.gct",)),
    Door("sample table", sample_table, packed_seeds(SAMPLES), (*TABLE_WORDS, b"SMTSD"), ("samples.tsv",)),
    Door("wide table", wide, packed_seeds(WIDE), TABLE_WORDS, ("expression.tsv",)),
    Door(
        "wide parquet",
        wide_parquet,
        (parquet_bytes([{"transcript_id": "T", "Liver": 1.0}]),),
        AWKWARD,
        ("expression.parquet",),
    ),
    Door(
        "wide parquet of rows",
        wide_made_parquet,
        (
            json.dumps(
                [{"transcript_id": "T", "Liver": 1.5, "Brain": "NA"}, {"transcript_id": "U", "Liver": 0.0}]
            ).encode(),
        ),
        (*TABLE_WORDS, b"null", b"true", b"[]", b"{}"),
        ("made.parquet",),
    ),
    Door(
        "plain table",
        plain,
        packed_seeds(PLAIN.encode()),
        (*TABLE_WORDS, b"labels_0", b"dna"),
        ("table.csv", "transcript", "split"),
    ),
    Door(
        "plain parquet of rows",
        plain_made_parquet,
        (json.dumps(JSON_ROWS).encode(),),
        (*TABLE_WORDS, b"null", b"true", b"[]", b"{}"),
        ("table.parquet", "transcript", "split"),
    ),
    Door(
        "published table",
        published,
        packed_seeds(PUBLISHED.encode()),
        (*TABLE_WORDS, b"chr1", b"chr2", b"strand"),
        ("table.csv", "transcript", "split"),
    ),
)
