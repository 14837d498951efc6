"""Expression: wide tables and GTEx's GCT, averaged by tissue; bad values named to the cell."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from isoformer.errors import InputError
from isoformer.schema import TISSUES
from isoformer.sources import gct
from isoformer.sources.expression import Expression, log1p_targets, read_expression
from isoformer.sources.tissues import group_tissue
from prepare.tiny import write_expression

SAMPLES = {
    "S1": "Brain - Cortex",
    "S2": "Whole Blood",
    "S3": "Brain - Cerebellum",
    "S4": "Cells - EBV-transformed lymphocytes",
    "S5": "Cells - Leukemia cell line (CML)",
    "S6": "Artery - Tibial",
}


def _sample_table(folder: Path, samples: dict[str, str] = SAMPLES, header: str = "SAMPID\tSMTSD") -> Path:
    path = folder / "samples.tsv"
    path.write_text("\n".join([header, *(f"{name}\t{tissue}" for name, tissue in samples.items())]) + "\n")
    return path


def _gct(
    folder: Path, rows: list[list[str]], first: str = "transcript_id\tgene_id", stated: int | None = None
) -> Path:
    header = f"{first}\t" + "\t".join(SAMPLES)
    size = f"{len(rows) if stated is None else stated}\t{len(SAMPLES)}"
    text = "\n".join(["#1.2", size, header, *("\t".join(row) for row in rows)]) + "\n"
    path = folder / "expression.gct.gz"
    path.write_bytes(gzip.compress(text.encode()))
    return path


def _read_gct(folder: Path, rows: list[list[str]], **options: object) -> Expression:
    return read_expression(_gct(folder, rows, **options), sample_tissues=_sample_table(folder))  # type: ignore[arg-type]


@pytest.mark.parametrize("first", ["transcript_id\tgene_id", "Name\tDescription"])
def test_gct_is_averaged_over_the_samples_of_each_tissue(tmp_path: Path, first: str) -> None:
    rows = [["T1", "G1", "1", "2", "3", "5", "99", "7"], ["T2", "G1", "0", "0", "0.5", "0", "0", "NA"]]
    found = _read_gct(tmp_path, rows, first=first)
    assert found.transcript_ids == ["T1", "T2"]
    assert found.target_names == ["Blood", "Blood Vessel", "Brain"]
    np.testing.assert_allclose(found.tpm, [[3.5, 7, 2], [0, math.nan, 0.25]])
    assert found.counts == {"rows": 2, "samples": 6, "samples_dropped": 1, "samples_without_tissue": 0}


def test_gct_in_many_blocks_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[f"T{i}", "G", *(str(i + k / 8) for k in range(6))] for i in range(500)]
    whole = _read_gct(tmp_path, rows)
    monkeypatch.setattr(gct, "_BLOCK_BYTES", 1000)
    assert np.array_equal(_read_gct(tmp_path, rows).tpm, whole.tpm)


def test_chosen_tissues_of_a_gct(tmp_path: Path) -> None:
    path, samples = _gct(tmp_path, [["T1", "G1", "1", "2", "3", "5", "99", "7"]]), _sample_table(tmp_path)
    assert read_expression(path, sample_tissues=samples, targets=["Brain"]).tpm.tolist() == [[2.0]]


def test_samples_that_the_table_does_not_know_are_counted(tmp_path: Path) -> None:
    path = _gct(tmp_path, [["T1", "G1", "1", "2", "3", "5", "99", "7"]])
    some = _sample_table(tmp_path, {"S1": "Brain - Cortex"}, header="SampleID\tTissue")
    assert read_expression(path, sample_tissues=some).counts["samples_without_tissue"] == 5
    other = _sample_table(tmp_path, {"X": "Brain - Cortex"})
    with pytest.raises(
        InputError, match=r"no sample of the matrix is in the sample table: got 'S1'.*such as X"
    ):
        read_expression(path, sample_tissues=other)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (
            [["T1", "G1", "1", "2", "3", "5", "9", "7"], ["T2", "G", "1", "2", "x", "5", "9", "7"]],
            r"line 5, field 'S3': TPM is not a number: got 'x'",
        ),
        (
            [["T1", "G1", "1", "2", "3", "5", "9", "7"], ["T2", "G", "1", "2", "3", "-5", "9", "7"]],
            r"line 5, T2, field 'S4': TPM is negative: got -5.0",
        ),
        ([["T1", "G1", "1", "2", "inf", "5", "9", "7"]], r"line 4, T1, field 'S3': TPM is infinite"),
        (
            [["T1", "G1", "1", "2", "3", "5", "9"]],
            r"line 4: line has another number of values.*got 7; allowed: 8",
        ),
        (
            [["T1", "G1", "1", "2", "3", "5", "9", "7"]] * 2,
            r"line 5, T1: transcript is there twice, first on line 4",
        ),
    ],
)
def test_bad_values_in_a_gct_are_named(tmp_path: Path, rows: list[list[str]], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        _read_gct(tmp_path, rows)


def test_a_gct_with_too_few_rows_or_cut_short(tmp_path: Path) -> None:
    row = ["T1", "G1", "1", "2", "3", "5", "9", "7"]
    with pytest.raises(InputError, match=r"line 2: another number of rows.*got 1; allowed: 3 rows"):
        _read_gct(tmp_path, [row], stated=3)
    path = _gct(tmp_path, [row])
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(InputError, match="truncated"):
        read_expression(path, sample_tissues=_sample_table(tmp_path))
    with pytest.raises(InputError, match="needs a sample-to-tissue table"):
        read_expression(path)
    path.write_bytes(b"transcript_id\tS1\n")
    with pytest.raises(InputError, match=r"line 1: is not a GCT: got 'transcript_id"):
        read_expression(path, sample_tissues=_sample_table(tmp_path))


def test_an_unknown_tissue_in_the_sample_table(tmp_path: Path) -> None:
    samples = _sample_table(tmp_path, {"S1": "Brain - Cortex", "S2": "Gills"})
    with pytest.raises(
        InputError, match=r"samples.tsv, line 3, field 'SMTSD': unknown tissue: got 'Gills'; allowed: Adip"
    ):
        read_expression(_gct(tmp_path, []), sample_tissues=samples)


@pytest.mark.parametrize(
    ("detailed", "tissue"),
    [
        ("Adipose - Visceral (Omentum)", "Adipose Tissue"),
        ("Artery - Aorta", "Blood Vessel"),
        ("Brain - Frontal Cortex (BA9)", "Brain"),
        ("Breast - Mammary Tissue", "Breast"),
        ("Cells - Cultured fibroblasts", "Skin"),
        ("Cells - EBV-transformed lymphocytes", "Blood"),
        ("Cells - Leukemia cell line (CML)", None),
        ("Cervix - Ectocervix", "Cervix Uteri"),
        ("Minor Salivary Gland", "Salivary Gland"),
        ("Nerve - Tibial", "Nerve"),
        ("Whole Blood", "Blood"),
        ("Small Intestine - Terminal Ileum", "Small Intestine"),
        ("Blood", "Blood"),
        ("Testis", "Testis"),
    ],
)
def test_detailed_tissues_are_grouped(detailed: str, tissue: str | None) -> None:
    assert group_tissue(detailed) == tissue


@pytest.mark.parametrize("kind", ["tsv", "csv", "csv.gz", "parquet"])
def test_wide_tables_of_every_kind_are_one(tmp_path: Path, kind: str) -> None:
    plain = pl.read_csv(write_expression(tmp_path, ["T1", "T2"]), separator="\t")
    path = tmp_path / f"wide.{kind}"
    if kind == "parquet":
        plain.write_parquet(path)
    else:
        text = plain.write_csv(separator="\t" if kind == "tsv" else ",").encode()
        path.write_bytes(gzip.compress(text) if kind.endswith("gz") else text)
    found = read_expression(path)
    assert (found.transcript_ids, found.target_names) == (["T1", "T2"], list(TISSUES))
    np.testing.assert_allclose(found.tpm[1], [1 + t / 10 for t in range(30)])


def test_tissues_come_in_the_published_order_whatever_the_file_has(tmp_path: Path) -> None:
    path = tmp_path / "wide.tsv"
    path.write_text("transcript_id\tgene_id\tLung\tBlood\nT1\tG1\t1\t2\n")
    found = read_expression(path)
    assert (found.target_names, found.tpm.tolist()) == (["Blood", "Lung"], [[2.0, 1.0]])
    path.write_text("transcript_id\tgene_id\tmine\nT1\tG1\t1\n")
    assert read_expression(path, targets=["mine"]).tpm.tolist() == [[1.0]]


def test_what_was_not_measured_is_masked_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    path.write_text("transcript_id,Blood,Lung\nT1,,1\nT2,NaN,NA\n")
    found = read_expression(path)
    targets, mask = log1p_targets(found.tpm)
    assert mask.tolist() == [[False, True], [False, False]]
    np.testing.assert_allclose(targets, [[0, math.log(2)], [0, 0]], rtol=1e-6)
    assert (targets.dtype, found.counts) == (np.float32, {"rows": 2, "cells_not_measured": 3})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("transcript_id\tBlood\nT1\t1\nT2\t-0.5\n", r"line 3, field 'Blood': TPM is negative: got '-0.5'"),
        (
            "transcript_id\tBlood\nT1\tmany\n",
            r"line 2, field 'Blood': TPM is not a number: got 'many'; allowed: a num",
        ),
        ("transcript_id\tBlood\nT1\tinf\n", "TPM is infinite"),
        (
            "transcript_id\tBlood\tGills\nT1\t1\t1\n",
            r"line 1, field 'Gills': unknown tissue; allowed: Adipose Tissue",
        ),
        ("transcript_id\tgene_id\nT1\tG1\n", "no tissue column"),
        (
            "identifier\tBlood\nT1\t1\n",
            r"field 'transcript_id': column is missing.*the file has identifier, Blood",
        ),
        ("transcript_id\tBlood\nT1\t1\nT1\t2\n", r"line 3, T1: transcript is there twice, first on line 2"),
        (
            "transcript_id\tBlood\nT1\t1\t7\n",
            r"line 2: line has another number of columns.*got 3; allowed: 2",
        ),
        ("transcript_id\tBlood\tBlood\nT1\t1\t7\n", r"line 1: column is there twice: got 'Blood'"),
        ("nothing\n", "fewer than two columns"),
    ],
)
def test_bad_wide_tables_are_named(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "wide.tsv"
    path.write_text(text)
    with pytest.raises(InputError, match=problem) as caught:
        read_expression(path)
    assert str(path) in str(caught.value)


def test_missing_and_damaged_tables(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expression file does not exist"):
        read_expression(tmp_path / "none.tsv")
    path = tmp_path / "wide.tsv.gz"
    path.write_bytes(gzip.compress(b"transcript_id\tBlood\n" + b"T\t1\n" * 9000)[:-20])
    with pytest.raises(InputError, match="truncated"):
        read_expression(path)
    parquet = tmp_path / "wide.parquet"
    parquet.write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read_expression(parquet)
    pl.DataFrame({"transcript_id": ["T1"], "Blood": [-1.0]}).write_parquet(parquet)
    with pytest.raises(InputError, match="TPM is negative"):
        read_expression(parquet)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"transcript_id\tLiver\n\t1\n", "line 2: transcript has no id"),
        (b"transcript_id\tLiver\n \t1\n", "line 2: transcript has no id"),
        (b"transcript_id\tLiver\nT\xff\t1\n", "line 2: is not text"),
        (b"transcript_id\tLiver\nT\0\t1\n", "line 2: is not text"),
        (b"transc\rript_id\tLiver\nT\t1\n", r"line 1: header cannot be read"),
        (b"transcript_\xff\tLiver\nT\t1\n", r"line 1: is not text|header"),
    ],
)
def test_a_table_that_is_no_text_or_has_no_ids_is_refused(tmp_path: Path, text: bytes, problem: str) -> None:
    path = tmp_path / "wide.tsv"
    path.write_bytes(text)
    with pytest.raises(InputError, match=rf"wide\.tsv, {problem}"):
        read_expression(path)


def test_a_damaged_parquet_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "wide.parquet"
    pl.DataFrame({"transcript_id": ["T"], "Liver": [1.0]}).write_parquet(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(4, len(whole), 150):
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ int(rng.integers(1, 256))]) + whole[place + 1 :]
        )
        try:
            assert read_expression(path).transcript_ids
        except InputError as error:
            assert "wide.parquet" in str(error)


def test_a_sample_without_a_name_and_a_gct_header_that_is_no_text(tmp_path: Path) -> None:
    table = tmp_path / "samples.tsv"
    table.write_text("SAMPID\tSMTSD\n\tLiver\n")
    with pytest.raises(InputError, match=r"samples\.tsv, line 2, field 'SAMPID': sample has no name"):
        gct.read_sample_tissues(table)
    table.write_text("SAMPID\tSMTSD\nS1\tLiver\n")
    (tmp_path / "x.gct").write_bytes(b"#1.2\n1\t1\ntranscript_id\tgene_id\t\xd81\nT\tG\t1\n")
    with pytest.raises(InputError, match=r"x\.gct, line 3: header is not text"):
        read_expression(tmp_path / "x.gct", sample_tissues=table)
