"""Tables that bring their own sequences: the published layout, and plain tables with dna, rna and protein."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from isoformer.config import build
from isoformer.errors import InputError
from isoformer.schema import TISSUES
from isoformer.sequences import sequence_digest
from isoformer.sources.published import read_plain
from isoformer.storage import open_storage
from isoformer.transcripts import Manifest, PrepareConfig, prepare, read_manifest, read_shard, run_here
from prepare.tiny import PROTEIN, RNA, WINDOW_16, write_genome

GENES = 6
WORDS = ["train", "train", "train", "train", "evaluation", "test"]


def _published(**changes: Any) -> pl.DataFrame:
    """Six genes in the published column order, on both strands by turns."""
    plus = [number % 2 == 1 for number in range(GENES)]
    columns: dict[str, Any] = {
        "transcript_id_gtex": [f"ENST{number}.1" for number in range(GENES)],
        "gene_id_gtex": [f"ENSG{number}" for number in range(GENES)],
        "split": WORDS,
        "chr": ["chr1" if on else "chr2" for on in plus],
        "strand": ["+" if on else "-" for on in plus],
        "start": [6] * GENES,
        "end": [31] * GENES,
        "gene_name": ["A"] * GENES,
        "label_source": ["made up"] * GENES,
        **{
            tissue: [float(place + number) for number in range(GENES)] for place, tissue in enumerate(TISSUES)
        },
        "RNA": [RNA] * GENES,
        "5UTR": ["CC"] * GENES,
        "CDS": ["ATGGCTAAATGA"] * GENES,
        "3UTR": ["CC"] * GENES,
        "Protein": [PROTEIN] * GENES,
    }
    return pl.DataFrame(columns | changes)


def _prepare(folder: Path, table: pl.DataFrame, **changes: Any) -> Manifest:
    path = folder / "table.csv"
    table.write_csv(path)
    settings = {
        "route": "published",
        "reference": [str(write_genome(folder))],
        "table": str(path),
        "dna_window_bases": 16,
        "split": {"method": "column"},
        "shards": 2,
    }
    return prepare(build(PrepareConfig, settings | changes), str(folder / "root"), run_shards=run_here)


def _plain(folder: Path, table: pl.DataFrame, **changes: Any) -> Manifest:
    settings = {"route": "table", "reference": [], "split": {"method": "hash", "allow_empty": True}}
    return _prepare(folder, table, **(settings | changes))


def _rows(folder: Path) -> dict[str, dict[str, Any]]:
    storage = open_storage(folder / "root")
    shards = range(len(read_manifest(storage).shards))
    return {row["transcript_id"]: row for index in shards for row in read_shard(storage, index).to_pylist()}


def test_the_published_layout_with_windows_from_the_reference(tmp_path: Path) -> None:
    manifest = _prepare(tmp_path, _published())
    assert manifest.counts.splits == {"test": 1, "train": 4, "validation": 1}
    assert manifest.counts.status == {"ok": GENES}
    assert (manifest.target_names, manifest.window_bases) == (list(TISSUES), 16)
    rows = _rows(tmp_path)
    for number in (1, 2):
        row = rows[f"ENST{number}.1"]
        assert (row["rna"], row["protein"]) == (RNA, PROTEIN)
        assert row["dna_digest"] == sequence_digest(WINDOW_16)
        assert (row["five_utr_bases"], row["cds_bases"], row["three_utr_bases"]) == (2, 12, 2)
        np.testing.assert_allclose(row["targets"][7], math.log1p(7 + number), rtol=1e-6)
    assert (rows["ENST1.1"]["tss_bp"], rows["ENST2.1"]["tss_bp"]) == (5, 30)


def test_published_rows_that_disagree_with_themselves_are_noted(tmp_path: Path) -> None:
    changes = {
        "3UTR": ["CC"] * 5 + ["CCC"],
        "Protein": [PROTEIN] * 4 + ["MAR", PROTEIN],
        "CDS": [""] + ["ATGGCTAAATGA"] * 5,
    }
    manifest = _prepare(tmp_path, _published(**changes))
    assert manifest.counts.notes["utr_lengths_disagree"] == 1
    assert manifest.counts.notes["protein_disagrees"] == 1
    rows = _rows(tmp_path)
    assert [rows[name]["cds_bases"] for name in ("ENST5.1", "ENST4.1", "ENST0.1")] == [None, 12, None]


def test_published_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    table = _published(
        chr=["chr9", *_published()["chr"][1:]],
        start=[6, 90, 6, 6, 6, 6],
        end=[31, 99, 31, 31, 31, 31],
        RNA=[RNA, RNA, "ACG!", RNA, RNA, RNA],
    )
    twice = pl.concat([table, table.tail(1)])
    manifest = _prepare(tmp_path, twice)
    assert manifest.counts.quarantined == {
        "chromosome_not_in_reference": 1, "duplicate_transcript": 1, "outside_chromosome": 1, "rna_letters": 1
    }  # fmt: skip
    assert (manifest.counts.rows_in, manifest.counts.rows_out) == (7, 3)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"strand": ["+", "-", "x", "+", "+", "+"]}, r"line 4, field 'start, end, strand': .*got '6-31 x'"),
        ({"start": [6, 40, 6, 6, 6, 6]}, r"line 3.*got '40-31 \+'"),
        ({"split": ["train"] * 5 + ["both"]}, r"ENSG5, field 'split': split is not one: got 'both'"),
        ({"split": ["train"] * 6}, r"split validation, test is empty"),
        ({"gene_id_gtex": ["G"] * 6}, r"G, field 'split': gene is in two splits"),
        ({"Lung": ["1", "2", "x", "4", "5", "6"]}, r"line 4, field 'Lung': TPM is not a number: got 'x'"),
        ({"Lung": [1.0, 2, 3, 4, 5, -6]}, r"line 7, field 'Lung': TPM is negative: got '-6.0'"),
    ],
)  # fmt: skip
def test_bad_published_tables_are_named(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        _prepare(tmp_path, _published(**changes))


@pytest.mark.parametrize("column", ["transcript_id_gtex", "RNA", "strand", "start", "Protein"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    with pytest.raises(InputError, match=f"column is missing; allowed: one of .*{column}"):
        _prepare(tmp_path, _published().drop(column))


def test_a_split_by_column_needs_the_column(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="field 'split': column is missing"):
        _prepare(tmp_path, _published().drop("split"))


def test_a_plain_table_keeps_its_own_dna(tmp_path: Path) -> None:
    table = pl.DataFrame(
        {
            "transcript_id": ["T1", "T2", "T3"],
            "gene_id": ["G1", "G1", "G2"],
            "dna": ["acgtacgt", "ACGTACGT", "TTTTACGT"],
            "rna": ["ACGU", "ACGT", ""],
            "protein": ["MAK*", "", "MA"],
            "Liver": ["1", "2", ""],
            "Lung": ["0", "1", "3"],
        }
    )
    manifest = _plain(tmp_path, table)
    assert (manifest.reference_digest, manifest.window_bases) == (None, 8)
    assert manifest.target_names == ["Liver", "Lung"]
    rows = _rows(tmp_path)
    assert (rows["T1"]["dna"], rows["T1"]["rna"], rows["T1"]["protein"]) == ("ACGTACGT", "ACGT", "MAK")
    assert rows["T1"]["dna_digest"] == rows["T2"]["dna_digest"] == sequence_digest("ACGTACGT")
    assert rows["T1"]["rna_digest"] == rows["T2"]["rna_digest"]
    assert (rows["T2"]["protein"], rows["T2"]["status"]) == (None, "no_protein")
    assert (rows["T3"]["rna_digest"], rows["T3"]["target_mask"]) == (None, [False, True])
    assert rows["T1"]["split"] == rows["T2"]["split"]


def test_numbered_labels_other_names_and_values_that_are_logs(tmp_path: Path) -> None:
    table = pl.DataFrame(
        {
            "dna_seq": ["ACGT", "ACGTA"], "rna_seq": ["ACG", "AAA"], "protein_seq": ["M", "MA"],
            **{f"labels_{place}": [float(place), 0.5] for place in range(11)},
        }
    )  # fmt: skip
    manifest = _plain(tmp_path, table, target_values="log1p_tpm")
    assert manifest.target_names == [f"labels_{place}" for place in range(11)]
    assert manifest.window_bases is None
    assert manifest.counts.sources["table_rows_without_gene_id"] == 2
    np.testing.assert_allclose(_rows(tmp_path)["row-1"]["targets"], range(11), rtol=1e-6)


def test_rows_without_a_sequence_or_a_target_are_counted(tmp_path: Path) -> None:
    table = pl.DataFrame(
        {
            "transcript_id": ["A", "B", "C"],
            "rna": ["ACG", "", "ACG"],
            "protein": ["M", "", "M"],
            "Lung": ["1", "1", ""],
        }
    )
    assert _plain(tmp_path, table).counts.quarantined == {"no_expression": 1, "no_sequence": 1}


def test_plain_tables_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sequence column; allowed: dna, rna, protein"):
        _plain(tmp_path, pl.DataFrame({"transcript_id": ["A"], "Lung": [1.0]}))
    with pytest.raises(InputError, match="no target column"):
        _plain(tmp_path, pl.DataFrame({"transcript_id": ["A"], "rna": ["ACG"]}))
    with pytest.raises(InputError, match="table has no rows"):
        _plain(tmp_path, pl.DataFrame({"transcript_id": ["A"], "rna": ["ACG"], "Lung": [1.0]}).clear())


def test_a_row_whose_id_is_blank_is_set_aside(tmp_path: Path) -> None:
    table = pl.DataFrame({"transcript_id": ["T1", "\t"], "rna": [RNA, RNA], "Liver": [1.0, 2.0]})
    manifest = _plain(tmp_path, table)
    assert manifest.counts.quarantined == {"without_id": 1} and manifest.counts.rows_out == 1


@pytest.mark.parametrize(
    ("column", "values", "problem"),
    [
        ("Liver", [["x"]], r"field 'Liver': target column holds no numbers: got 'List\(String\)'"),
        ("Liver", [True], "field 'Liver': target column holds no numbers: got 'Boolean'"),
        ("rna", [["A"]], r"field 'rna': column holds no text: got 'List\(String\)'"),
        ("transcript_id", [False], "field 'transcript_id': column holds no text: got 'Boolean'"),
        ("gene_id", [b"G"], "field 'gene_id': column holds no text: got 'Binary'"),
    ],
)
def test_a_parquet_column_of_another_kind_is_named(
    tmp_path: Path, column: str, values: list[Any], problem: str
) -> None:
    path = tmp_path / "table.parquet"
    columns: dict[str, Any] = {"transcript_id": ["T1"], "gene_id": ["G1"], "rna": [RNA], "Liver": [1.0]}
    pl.DataFrame(columns | {column: values}).write_parquet(path)
    with pytest.raises(InputError, match=problem):
        read_plain(path)
