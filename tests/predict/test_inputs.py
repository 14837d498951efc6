"""Every kind of input gives a row for every transcript, with the sequences that prepare would make of it."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from isoformer.embeddings.shard_sequences import TranscriptsSource, tokenise
from isoformer.encoders.registry import EncoderChoice
from isoformer.errors import InputError, StorageError
from isoformer.extraction import Policy
from isoformer.manifest import read_manifest
from isoformer.predict.inputs import PredictInput
from isoformer.predict.rows import PredictRow
from isoformer.sequence_model import SequenceModel, TranscriptSequences
from isoformer.storage import open_storage
from predict.trained import transcripts_of
from prepare.tiny import (
    PROTEIN,
    RNA,
    WINDOW_16,
    gtf_lines,
    transcript_id,
    write_annotation,
    write_genome,
)
from tiny_dataset import write_dataset

POLICY = Policy(16, 200, 0.5, "quarantine", "known_selenoproteins")


def fasta(path: Path, records: Mapping[str, str]) -> str:
    path.write_text("".join(f">{name}\n{letters[:7]}\n{letters[7:]}\n" for name, letters in records.items()))
    return str(path)


def read(model: SequenceModel, given: PredictInput) -> list[PredictRow]:
    return list(given.rows(model.policy))


def reasons(rows: list[PredictRow]) -> dict[str, str]:
    return {row.transcript_id: row.reason for row in rows}


def test_fasta_files_are_matched_by_id(model: SequenceModel, tmp_path: Path) -> None:
    given = PredictInput(
        fasta(tmp_path / "rna.fa", {"ENST1.1|ENSG1|x": "acguACGTACGT", "t2 some words": "ACGTACGTACGT"}),
        protein=fasta(tmp_path / "p.fa", {"ENSP1|ENST1.1|ENSG1": "MKVLAMKVLA*", "only": "MKVLAW"}),
        dna=fasta(tmp_path / "d.fasta", {"t2": "ACGT" * 5, "only": "CCGG" * 5, "window": "GATTACA" * 3}),
    )
    rows = read(model, given)
    assert [row.sequences for row in rows] == [
        TranscriptSequences("ENST1.1", None, "ACGTACGTACGT", "MKVLAMKVLA"),
        TranscriptSequences("t2", "ACGT" * 5, "ACGTACGTACGT", None),
        TranscriptSequences("only", "CCGG" * 5, None, "MKVLAW"),
        TranscriptSequences("window", "GATTACA" * 3, None, None),
    ]
    assert reasons(rows) == dict.fromkeys(["ENST1.1", "t2", "only", "window"], "")
    assert {row.status for row in rows} == {"ok", "no_protein"}


def test_a_row_that_cannot_be_used_keeps_its_place(model: SequenceModel, tmp_path: Path) -> None:
    path = tmp_path / "rna.fa"
    path.write_text(">a\nACGT\n>bad\nACGTJ\n>empty\n\n>a\nACGT\n>\nACGT\n>n\nNNNNNNNN\n>z\nACGT\n")
    rows = read(model, PredictInput(str(path)))
    assert [(row.transcript_id, row.reason) for row in rows] == [
        ("a", ""), ("bad", "rna_letters"), ("empty", "no_sequence"), ("a", "duplicate_transcript"),
        ("", "without_id"), ("n", "rna_unknown"), ("z", ""),
    ]  # fmt: skip
    assert "letter at position 5 of a rna sequence is not one: got 'J'" in rows[1].notes
    assert all((row.sequences is None) == bool(row.reason) for row in rows)


def test_sequences_are_cropped_as_prepare_crops_them(model: SequenceModel, tmp_path: Path) -> None:
    path = fasta(tmp_path / "rna.fa", {"long": "ACGTACGTGG"})
    row = next(PredictInput(path).rows(replace(model.policy, rna_max_bases=4)))
    assert row.sequences == TranscriptSequences("long", None, "GTGG", None)
    assert (row.status, row.notes) == ("no_protein", "rna_cropped=6")


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv.gz", "parquet"])
def test_tables(model: SequenceModel, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"table.{kind}"
    columns = {
        "other": ["1", "2", "3", "4"],
        "rna": ["ACGT", "", "ACGT", "ACGT"],
        "transcript_id": ["a", "b", "", "d"],
        "protein": ["", "mk", "", "M1"],
    }
    if kind == "parquet":
        values = {name: [cell or None for cell in cells] for name, cells in columns.items()}
        pq.write_table(pa.table(values), path)
    else:
        delimiter = "\t" if kind == "tsv" else ","
        lines = [delimiter.join(row) for row in zip(*columns.values(), strict=True)]
        text = "\n".join([delimiter.join(columns), *lines]) + "\n"
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    rows = read(model, PredictInput(str(path)))
    assert [row.sequences for row in rows[:2]] == [
        TranscriptSequences("a", rna="ACGT"),
        TranscriptSequences("b", protein="MK"),
    ]
    assert [row.reason for row in rows] == ["", "", "without_id", "protein_letters"]
    assert "row 3 of" in rows[2].notes


def test_gene_models_are_cut_from_the_genome(model: SequenceModel, tmp_path: Path) -> None:
    lines = gtf_lines(1, "chr1", "+") + gtf_lines(2, "chr2", "-") + gtf_lines(3, "chr9", "+")
    given = PredictInput(str(write_annotation(tmp_path, lines)), reference=str(write_genome(tmp_path)))
    policy = replace(model.policy, dna_window_bases=16)
    rows = list(given.rows(policy))
    assert [row.sequences for row in rows] == [
        None,
        TranscriptSequences(transcript_id(1), WINDOW_16, RNA, PROTEIN),
        TranscriptSequences(transcript_id(2), WINDOW_16, RNA, PROTEIN),
    ]
    assert (rows[0].transcript_id, rows[0].reason) == (transcript_id(3), "chromosome_not_in_reference")
    packed = tmp_path / "genome.fa.gz"
    packed.write_bytes(gzip.compress((tmp_path / "genome.fa").read_bytes()))
    assert list(replace(given, reference=str(packed)).rows(policy)) == rows


def test_a_prepared_shard_needs_its_root(model: SequenceModel, root: Path, tmp_path: Path) -> None:
    shard = root / "transcripts/shard-00000.parquet"
    rows = read(model, PredictInput(str(shard)))
    assert [row.sequences for row in rows] == transcripts_of(root)[:12]
    alone = tmp_path / "shard.parquet"
    alone.write_bytes(shard.read_bytes())
    with pytest.raises(InputError, match="a transcripts shard outside of its root"):
        read(model, PredictInput(str(alone)))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("x.fa", "ACGT\n", r"x\.fa, line 1: not FASTA: got b'A'"),
        ("x.txt", "ACGT\n", r"not a kind of input: got '\.txt'; allowed: \.fa, \.fasta"),
        ("x.csv", "id,rna\na,A\n", r"field 'transcript_id': column is missing"),
        ("x.csv", "transcript_id,sequence\na,A\n", r"field 'rna': column is missing"),
        (
            "x.csv",
            "transcript_id,rna\na,A,C\n",
            r"line 2: line has another number of columns.*got 3; allowed: 2",
        ),
        ("x.parquet", "ACGT", r"x\.parquet: cannot be read as Parquet"),
        ("x.gtf", "ACGT\n", r"field '--reference': gene models need the genome"),
        ("x.fa.gz", "", "input file is empty|rna file is empty"),
    ],
)
def test_a_file_that_is_something_else_is_named(
    model: SequenceModel, tmp_path: Path, name: str, text: str, expected: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=expected):
        read(model, PredictInput(str(tmp_path / name)))


def test_options_that_do_not_go_together(model: SequenceModel, tmp_path: Path) -> None:
    path = fasta(tmp_path / "p.fa", {"a": "MK"})
    with pytest.raises(InputError, match="go with a FASTA of RNA only"):
        read(model, PredictInput(str(tmp_path / "x.csv"), protein=path))
    (tmp_path / "twice.fa").write_text(">a\nMK\n>a\nMK\n")
    with pytest.raises(InputError, match=r"twice\.fa, a: is there twice"):
        read(model, PredictInput(path, protein=str(tmp_path / "twice.fa")))
    with pytest.raises(InputError, match="file does not exist"):
        read(model, PredictInput(str(tmp_path / "none.fa")))


@pytest.mark.parametrize("bad", [b"\xff", b"\0"])
def test_a_table_that_is_no_text_names_the_line(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b"transcript_id,rna\nT1,ACG\nT2,AC" + bad)
    with pytest.raises(InputError, match=r"in\.csv, line 3: is not text"):
        list(PredictInput(str(path)).rows(POLICY))


def test_a_parquet_that_is_damaged_anywhere_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"transcript_id": ["T1", "T2"], "rna": ["ACGT", None]}), path)
    whole = path.read_bytes()
    for place in range(4, len(whole), 11):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        try:
            list(PredictInput(str(path)).rows(POLICY))
        except InputError as error:
            assert "in.parquet" in str(error)


def test_a_shard_whose_letters_or_columns_are_not_its_own_is_refused(tmp_path: Path) -> None:
    write_dataset(str(tmp_path), shards=1, genes_per_shard=1, window_bases=64)
    path = tmp_path / "transcripts" / "shard-00000.parquet"
    whole = pq.read_table(path)
    assert len(list(PredictInput(str(path)).rows(POLICY))) == len(whole)
    changed = pa.array([text[:-1] + "N" for text in whole["rna"].to_pylist()], pa.large_string())
    place = whole.schema.get_field_index("rna")
    for table, problem in (
        (
            whole.set_column(place, whole.schema.field("rna"), changed),
            "T0.0, field 'rna': sequence is not that",
        ),
        (whole.drop_columns("window_end_bp"), "field 'window_end_bp': not a column of a transcripts shard"),
        (whole.set_column(place, "rna", pa.array(range(len(whole)))), "field 'rna': not a column"),
    ):
        pq.write_table(table, path)
        with pytest.raises(InputError, match=problem):
            list(PredictInput(str(path)).rows(POLICY))
    pq.write_table(whole.set_column(place, whole.schema.field("rna"), changed), path)
    with pytest.raises(StorageError, match=r"shard-00000\.parquet: holds a rna sequence that is not that"):
        source = TranscriptsSource.of(open_storage(tmp_path), read_manifest(open_storage(tmp_path)))
        tokenise(source, 0, EncoderChoice(name="composition-rna"))
