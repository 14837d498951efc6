"""The demo's real data: extraction arrives at sequences that were published independently."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from Bio.Seq import Seq

from isoformer import demo_data
from isoformer.config import build
from isoformer.demo_data.cut import WINDOW_BASES, kept_stretches, masked_outside
from isoformer.schema import TISSUES
from isoformer.sequences import dna_window, sequence_digest
from isoformer.sources.annotation import read_annotation
from isoformer.sources.reference import Reference
from isoformer.storage import open_storage
from isoformer.transcripts import Manifest, PrepareConfig, prepare, read_shard, run_here

FOLDER = Path(demo_data.__file__).parent
SIZE_LIMIT_BYTES = 8 << 20


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Manifest, dict[str, dict[str, Any]], Reference]:
    root = tmp_path_factory.mktemp("demo")
    config = build(PrepareConfig, {**demo_data.demo_paths(), "rna_max_bases": 1_000_000})
    manifest = prepare(config, str(root), run_shards=run_here)
    storage = open_storage(root)
    tables = [read_shard(storage, index) for index in range(len(manifest.shards))]
    rows = {row["transcript_id"]: row for table in tables for row in table.to_pylist()}
    return manifest, rows, Reference.open(root / f"reference/{manifest.reference_digest}.fa.gz")


def test_every_transcript_is_used_and_the_labels_say_what_they_are(prepared: Any) -> None:
    manifest = prepared[0]
    assert (manifest.counts.rows_in, manifest.counts.rows_out) == (345, 345)
    assert manifest.target_names == list(TISSUES)
    assert "measured" in manifest.label_provenance
    assert min(manifest.counts.splits.values()) >= 20


def test_rna_protein_and_lengths_are_the_published_ones(prepared: Any) -> None:
    rows = prepared[1]
    with (FOLDER / demo_data.DIGESTS).open(newline="") as file:
        expected = {row["transcript_id"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert len(expected) == 345
    assert set(rows) == set(expected)
    for identifier, row in rows.items():
        for name, value in expected[identifier].items():
            assert str(row[name]) == value, (identifier, name)


def test_proteins_are_biopythons_translation_of_the_cds(prepared: Any) -> None:
    for row in prepared[1].values():
        start = row["five_utr_bases"]
        coding = row["rna"][start : start + row["cds_bases"]]
        assert str(Seq(coding).translate(to_stop=True)) == row["protein"]


def test_the_first_exon_begins_in_the_middle_of_the_window(prepared: Any) -> None:
    _, rows, reference = prepared
    models = read_annotation(demo_data.demo_paths()["annotation"]).transcripts
    for model in models.iter_rows(named=True):
        row = rows[model["transcript_id"]]
        exons = [end - start for start, end in zip(model["exon_starts"], model["exon_ends"], strict=True)]
        first = exons[0 if model["strand"] == "+" else -1]
        window = dna_window(reference, row)
        middle = WINDOW_BASES // 2
        assert len(window) == WINDOW_BASES
        assert window[middle : middle + first] == row["rna"][: min(first, middle)]
        assert row["dna_digest"] in (sequence_digest(window), None)


def test_the_naming_mismatch_is_real(prepared: Any) -> None:
    _, rows, reference = prepared
    assert set(reference.lengths) == {"chr21", "chr22", "Y"}
    assert {row["chromosome"] for row in rows.values()} == {"chr21", "chr22", "chrY"}


def test_the_data_is_small_and_says_where_it_is_from() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < SIZE_LIMIT_BYTES
    readme = (FOLDER / "README.md").read_text()
    for word in (
        "MIT",
        "public domain",
        "measured",
        "GENCODE",
        "RefSeq",
        demo_data.GENOME,
        demo_data.ANNOTATION,
        demo_data.EXPRESSION,
        demo_data.DIGESTS,
    ):
        assert word in readme


def test_the_cut_keeps_windows_and_exons_and_masks_the_rest() -> None:
    models = pl.DataFrame(
        {"chromosome": ["c", "c"], "strand": ["+", "-"], "exon_starts": [[9000, 20000], [50000]],
         "exon_ends": [[9010, 20010], [50010]]}
    )  # fmt: skip
    half = WINDOW_BASES // 2
    assert kept_stretches(models)["c"] == [
        (9000 - half, 9000 + half), (9000, 9010), (20000, 20010),
        (50010 - half, 50010 + half), (50000, 50010),
    ]  # fmt: skip
    assert masked_outside(b"acgtACGT", [(-2, 2), (6, 99)]) == b"acNNNNGT"
