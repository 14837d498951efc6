"""prepare, end to end on the tiny genome: counts that reconcile, quarantine, reuse, nothing half-written."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from isoformer.config import build
from isoformer.errors import ConfigError, FingerprintError, InputError, StorageError
from isoformer.manifest import MANIFEST_KEY, QUARANTINE_KEY
from isoformer.schema import TISSUES, transcripts_schema
from isoformer.sequences import dna_window, sequence_digest
from isoformer.sources.reference import open_dataset_reference
from isoformer.storage import open_storage
from isoformer.transcripts import (
    Manifest,
    PrepareConfig,
    prepare,
    read_manifest,
    read_shard,
    run_here,
    run_on_ray,
)
from prepare.tiny import (
    CHR1,
    CHR2,
    PROTEIN,
    RNA,
    WINDOW_16,
    gtf_lines,
    transcript_id,
    write_annotation,
    write_expression,
    write_genome,
)

GENES = 24
"""Enough genes that the hash split leaves none of the three splits empty."""


def _strand(number: int) -> tuple[str, str]:
    return ("chr1", "+") if number % 2 else ("chr2", "-")


def _annotation_text(numbers: range | list[int] = range(GENES)) -> str:
    return "".join(gtf_lines(number, *_strand(number)) for number in numbers)


def _config(folder: Path, **changes: Any) -> PrepareConfig:
    own = folder / "defaults"
    own.mkdir(exist_ok=True)
    settings: dict[str, Any] = {
        "reference": [str(write_genome(own))],
        "annotation": str(write_annotation(own, _annotation_text())),
        "expression": str(write_expression(own, [transcript_id(number) for number in range(GENES)])),
        "dna_window_bases": 16,
        "max_unknown_fraction": 0.9,
        "shards": 3,
        "label_provenance": "made up",
    }
    return build(PrepareConfig, settings | changes)


def _prepare(config: PrepareConfig, root: Path) -> Manifest:
    return prepare(config, str(root), run_shards=run_here)


def _rows(root: Path) -> dict[str, dict[str, Any]]:
    storage = open_storage(root)
    shards = range(len(read_manifest(storage).shards))
    return {row["transcript_id"]: row for index in shards for row in read_shard(storage, index).to_pylist()}


def test_the_whole_way_on_both_strands(tmp_path: Path) -> None:
    manifest = _prepare(_config(tmp_path), tmp_path / "root")
    assert (manifest.counts.rows_in, manifest.counts.rows_out, manifest.counts.quarantined) == (
        GENES,
        GENES,
        {},
    )
    assert manifest.counts.status == {"ok": GENES}
    assert sum(shard.transcripts for shard in manifest.shards) == GENES
    assert (manifest.target_names, manifest.target_unit) == (list(TISSUES), "log1p_tpm")
    assert (manifest.label_provenance, manifest.window_bases) == ("made up", 16)
    rows = _rows(tmp_path / "root")
    for number in (2, 3):
        row = rows[transcript_id(number)]
        assert (row["rna"], row["protein"]) == (RNA, PROTEIN)
        assert (row["five_utr_bases"], row["cds_bases"], row["three_utr_bases"]) == (2, 12, 2)
        assert row["dna_digest"] == sequence_digest(WINDOW_16)
        assert row["rna_digest"] == sequence_digest(RNA)
        assert row["protein_digest"] == sequence_digest(PROTEIN)
        np.testing.assert_allclose(row["targets"][5], math.log1p(number + 0.5), rtol=1e-6)
        assert all(row["target_mask"])
        assert row["dna"] is None
    assert (rows[transcript_id(3)]["tss_bp"], rows[transcript_id(2)]["tss_bp"]) == (5, 30)
    assert read_shard(open_storage(tmp_path / "root"), 0).schema.equals(transcripts_schema(30))


def test_windows_are_cut_again_from_the_stored_reference(tmp_path: Path) -> None:
    manifest = _prepare(_config(tmp_path), tmp_path / "root")
    reference = open_dataset_reference(open_storage(tmp_path / "root"), manifest)
    for row in _rows(tmp_path / "root").values():
        assert sequence_digest(dna_window(reference, row)) == row["dna_digest"]


def test_genes_stay_whole_in_a_shard_and_in_a_split(tmp_path: Path) -> None:
    text = _annotation_text()
    text += _annotation_text().replace('transcript_id "ENST0', 'transcript_id "ENST1')
    annotation = str(write_annotation(tmp_path, text))
    manifest = _prepare(_config(tmp_path, annotation=annotation, keep_unmeasured=True), tmp_path / "root")
    assert manifest.counts.rows_out == 2 * GENES
    storage = open_storage(tmp_path / "root")
    genes = [set(read_shard(storage, index, ["gene_id"])["gene_id"].to_pylist()) for index in range(3)]
    assert sum(len(found) for found in genes) == len(set.union(*genes)) == GENES
    splits = {(row["gene_id"], row["split"]) for row in _rows(tmp_path / "root").values()}
    assert len(splits) == GENES
    assert max(len(found) for found in genes) - min(len(found) for found in genes) <= 1


def test_every_row_that_is_left_out_is_counted_with_its_reason(tmp_path: Path) -> None:
    number = 100
    broken = gtf_lines(number, "chr1", "+").replace("CDS\t8\t", "CDS\t9\t")
    duplicate = gtf_lines(number + 1, "chr1", "+") * 2
    elsewhere = gtf_lines(number + 2, "chr7", "+")
    outside = gtf_lines(number + 3, "chr1", "+").replace("exon\t23\t31", "exon\t23\t310")
    unmeasured = gtf_lines(number + 4, "chr1", "+")
    ambiguous = gtf_lines(number + 5, "chr1", "+", version="")
    text = _annotation_text() + broken + duplicate + elsewhere + outside + unmeasured + ambiguous
    identifiers = [transcript_id(n) for n in [*range(GENES), *range(number, number + 4)]]
    identifiers += [transcript_id(number + 5, ".1"), transcript_id(number + 5, ".2"), transcript_id(999)]
    manifest = _prepare(
        _config(
            tmp_path,
            annotation=str(write_annotation(tmp_path, text)),
            expression=str(write_expression(tmp_path, identifiers)),
        ),
        tmp_path / "root",
    )
    assert manifest.counts.quarantined == {
        "cds_out_of_frame": 1,
        "chromosome_not_in_reference": 1,
        "duplicate_transcript": 1,
        "expression_ambiguous": 1,
        "no_expression": 1,
        "outside_chromosome": 1,
    }
    assert manifest.counts.rows_in == manifest.counts.rows_out + 6 == GENES + 6
    assert manifest.counts.sources["expression_rows_not_in_annotation"] == 3
    quarantine = pq.read_table(pa.BufferReader(open_storage(tmp_path / "root").read_bytes(QUARANTINE_KEY)))
    found = {row["transcript_id"]: row for row in quarantine.to_pylist()}
    assert found[transcript_id(102)]["detail"] == "chr7 is not a sequence of the reference"
    assert "cds_end_NF" in found[transcript_id(100)]["detail"]


def test_a_broken_cds_can_be_kept_without_its_protein(tmp_path: Path) -> None:
    text = _annotation_text([*range(1, GENES)]) + gtf_lines(0, "chr1", "+").replace("CDS\t8\t", "CDS\t9\t")
    config = _config(tmp_path, annotation=str(write_annotation(tmp_path, text)), broken_cds="no_protein")
    manifest = _prepare(config, tmp_path / "root")
    row = _rows(tmp_path / "root")[transcript_id(0)]
    assert (row["protein"], row["protein_digest"], row["status"]) == (None, None, "no_protein")
    assert row["notes"] == "cds_out_of_frame=1; dna_unknown=3"
    assert manifest.counts.notes["cds_out_of_frame"] == 1


def test_non_coding_transcripts_are_kept_with_a_null_protein(tmp_path: Path) -> None:
    lines = [
        line
        for line in _annotation_text().splitlines()
        if "\tCDS\t" not in line and "\tstop_codon\t" not in line
    ]
    config = _config(tmp_path, annotation=str(write_annotation(tmp_path, "\n".join(lines) + "\n")))
    assert _prepare(config, tmp_path / "root").counts.status == {"no_protein": GENES}
    row = _rows(tmp_path / "root")[transcript_id(1)]
    assert (row["rna"], row["protein"], row["cds_bases"]) == (RNA, None, None)


@pytest.mark.parametrize(
    ("limit", "rna", "lengths"),
    [(16, RNA, (2, 12, 2)), (15, RNA[1:], (1, 12, 2)), (6, RNA[10:], (0, 4, 2)), (1, "C", (0, 0, 1))],
)
def test_long_rna_is_cropped_on_the_left(
    tmp_path: Path, limit: int, rna: str, lengths: tuple[int, int, int]
) -> None:
    manifest = _prepare(_config(tmp_path, rna_max_bases=limit), tmp_path / "root")
    row = _rows(tmp_path / "root")[transcript_id(2)]
    assert row["rna"] == rna
    assert (row["five_utr_bases"], row["cds_bases"], row["three_utr_bases"]) == lengths
    assert row["protein"] == PROTEIN
    assert row["status"] == ("ok" if limit == 16 else "cropped")
    assert manifest.counts.notes.get("rna_cropped", 0) == (0 if limit == 16 else GENES)


def test_unknown_bases_are_masked_counted_or_too_many(tmp_path: Path) -> None:
    genome = write_genome(
        tmp_path, {"chr1": CHR1[:7] + "NNN" + CHR1[10:], "chr2": CHR2.replace("GTCATTTA", "N" * 8)}
    )
    config = _config(tmp_path, reference=[str(genome)], max_unknown_fraction=0.5)
    manifest = _prepare(config, tmp_path / "root")
    row = _rows(tmp_path / "root")[transcript_id(1)]
    assert (row["rna"], row["protein"], row["status"]) == ("CCNNNGCTAAATGACC", "XAK", "masked_residues")
    assert row["notes"] == "dna_unknown=6; protein_x=1; rna_unknown=3"
    mostly = _rows(tmp_path / "root")[transcript_id(2)]
    assert (mostly["rna"], mostly["protein"], mostly["status"]) == ("CCATGGCNNNNNNNNC", None, "no_protein")
    assert (manifest.counts.notes["protein_x"], manifest.counts.notes["protein_missing"]) == (
        GENES,
        GENES // 2,
    )
    strict = _prepare(config.edited(max_unknown_fraction=0.3), tmp_path / "strict")
    assert strict.counts.quarantined == {"rna_unknown": GENES // 2}


def test_ids_match_with_or_without_version_and_unmeasured_can_be_kept(tmp_path: Path) -> None:
    expression = write_expression(tmp_path, [transcript_id(number, "") for number in range(GENES - 1)])
    config = _config(tmp_path, expression=str(expression), keep_unmeasured=True)
    manifest = _prepare(config, tmp_path / "root")
    assert manifest.counts.sources["expression_match_by_stem"] == GENES - 1
    row = _rows(tmp_path / "root")[transcript_id(GENES - 1)]
    assert (any(row["target_mask"]), set(row["targets"])) == (False, {0.0})


def test_par_copies_on_y_are_set_aside_where_x_has_them(tmp_path: Path) -> None:
    genome = {"chr1": CHR1, "chr2": CHR2, "X": CHR1, "Y": CHR1}
    suffixed = gtf_lines(50, "chrY", "+").replace('.1"', '.1_PAR_Y"')
    text = _annotation_text() + gtf_lines(50, "chrX", "+") + suffixed
    text += gtf_lines(51, "chrX", "+") + gtf_lines(51, "chrY", "+") + gtf_lines(52, "chrY", "+")
    identifiers = [transcript_id(n) for n in [*range(GENES), 50, 51, 52]] + ["ENST00000000050.1_PAR_Y"]
    config = _config(
        tmp_path,
        reference=[str(write_genome(tmp_path, genome))],
        annotation=str(write_annotation(tmp_path, text)),
        expression=str(write_expression(tmp_path, identifiers)),
    )
    manifest = _prepare(config, tmp_path / "root")
    assert manifest.counts.quarantined == {"par_copy": 2}
    rows = _rows(tmp_path / "root")
    assert [rows[transcript_id(n)]["chromosome"] for n in (50, 51, 52)] == ["chrX", "chrX", "chrY"]


def test_a_dataset_that_is_there_is_used_and_said_so(tmp_path: Path) -> None:
    config, root = _config(tmp_path), tmp_path / "root"
    first, said = _prepare(config, root), []

    def no_work(*_: object) -> list[dict[str, Any]]:
        raise AssertionError("prepared again")

    moved = tmp_path / "elsewhere"
    moved.mkdir()
    again = _config(moved)
    assert prepare(again, str(root), run_shards=no_work, progress=said.append) == first
    assert "already there" in said[0] and first.fingerprint in said[0]


def test_another_dataset_is_never_overwritten(tmp_path: Path) -> None:
    config, root = _config(tmp_path), tmp_path / "root"
    first = _prepare(config, root)
    other = config.edited(rna_max_bases=9)
    fresh = _prepare(other, tmp_path / "other").fingerprint
    with pytest.raises(FingerprintError) as caught:
        _prepare(other, root)
    assert first.fingerprint in str(caught.value) and fresh in str(caught.value)
    assert read_manifest(open_storage(root)) == first


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    config = _config(tmp_path)
    first, second = _prepare(config, tmp_path / "a"), _prepare(config, tmp_path / "b")
    assert first == second
    for shard in first.shards:
        assert (tmp_path / "a/transcripts" / shard.name).read_bytes() == (
            tmp_path / "b/transcripts" / shard.name
        ).read_bytes()


def test_a_run_that_dies_leaves_no_dataset_and_can_be_run_again(tmp_path: Path) -> None:
    config, root = _config(tmp_path), tmp_path / "root"

    def dies_half_way(shards: Any, settings: Any) -> list[dict[str, Any]]:
        run_here([*shards, shards[0]], settings)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config, str(root), run_shards=dies_half_way)
    with pytest.raises(StorageError, match="holds no transcripts dataset"):
        read_manifest(open_storage(root))
    manifest = _prepare(config, root)
    left = [key for key in open_storage(root).list("transcripts/shard-")]
    assert left == [f"transcripts/{shard.name}" for shard in manifest.shards]


def test_lost_rows_are_never_published(tmp_path: Path) -> None:
    def loses_a_row(shards: Any, settings: Any) -> list[dict[str, Any]]:
        summaries = run_here(shards, settings)
        summaries[0]["transcripts"] -= 1
        return summaries

    with pytest.raises(InputError, match="counts do not reconcile: 24 rows in, 23 out, 0 quarantined"):
        prepare(_config(tmp_path), str(tmp_path / "root"), run_shards=loses_a_row)
    assert not open_storage(tmp_path / "root").exists(MANIFEST_KEY)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"reference": "none.fa"}, "none.fa: reference file does not exist"),
        ({"annotation": "none.gtf"}, "none.gtf: annotation file does not exist"),
        ({"split": {"test": 0.0}}, "split test is empty"),
        ({"split": {"method": "chromosome", "test_chromosomes": ["chr1"]}}, "split validation is empty"),
        ({"targets": ["Gills"]}, "field 'Gills': target column is missing"),
    ],
)
def test_bad_input_is_one_clear_error_and_leaves_nothing(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    config = build(PrepareConfig, _config(tmp_path).model_dump() | changes)
    with pytest.raises(InputError, match=problem):
        _prepare(config, tmp_path / "root")
    assert open_storage(tmp_path / "root").list() == []


def test_no_overlap_between_matrix_and_annotation(tmp_path: Path) -> None:
    expression = write_expression(tmp_path, ["uc001.1", "uc002.1"])
    with pytest.raises(
        InputError, match=r"expression.tsv.*no transcript of the annotation is in the matrix.*uc001"
    ):
        _prepare(_config(tmp_path, expression=str(expression)), tmp_path / "root")


def test_a_genome_that_lacks_every_chromosome(tmp_path: Path) -> None:
    genome = write_genome(tmp_path, {"scaffold_1": CHR1})
    with pytest.raises(
        InputError, match=r"no transcript is left to prepare: chromosome_not_in_reference 12 times.*chr1"
    ):
        _prepare(_config(tmp_path, reference=[str(genome)]), tmp_path / "root")


def test_when_all_is_quarantined_nothing_is_published(tmp_path: Path) -> None:
    text = _annotation_text().replace("CDS\t8\t", "CDS\t9\t").replace("CDS\t25\t29", "CDS\t25\t28")
    with pytest.raises(InputError, match=r"no transcript is left \(cds_out_of_frame 24\); the first: ENST"):
        _prepare(_config(tmp_path, annotation=str(write_annotation(tmp_path, text))), tmp_path / "root")
    assert open_storage(tmp_path / "root").list("transcripts") == []


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"route": "annotation"}, "route 'annotation' needs annotation, reference, expression"),
        ({"route": "published"}, "route 'published' needs table, reference"),
        ({"route": "table"}, "route 'table' needs table"),
        ({"route": "gff"}, "'annotation', 'published' or 'table'"),
        (
            {"annotation": "a", "reference": "r", "expression": "e", "split": {"method": "column"}},
            "needs a table",
        ),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_at_the_door(
    settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        build(PrepareConfig, settings)


def test_a_split_that_loses_all_its_rows_is_found_before_publishing(tmp_path: Path) -> None:
    chosen = {"method": "chromosome", "validation_chromosomes": ["chr2"], "test_chromosomes": ["chr3"]}
    broken = "".join(gtf_lines(number, "chr3", "+").replace("CDS\t8\t", "CDS\t9\t") for number in (50, 51))
    config = _config(
        tmp_path,
        reference=[str(write_genome(tmp_path, {"chr1": CHR1, "chr2": CHR2, "chr3": CHR1}))],
        annotation=str(write_annotation(tmp_path, _annotation_text() + broken)),
        keep_unmeasured=True,
        split=chosen,
    )
    with pytest.raises(
        InputError, match=r"split test is empty \(train 12, validation 12, test 0 transcripts\)"
    ):
        _prepare(config, tmp_path / "root")
    assert open_storage(tmp_path / "root").list("transcripts") == []


def test_a_full_disk_leaves_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from isoformer import storage as storage_module

    def full(_out: object, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage_module, "_write_all", full)
    with pytest.raises(StorageError, match="the disk is full"):
        _prepare(_config(tmp_path), tmp_path / "root")
    assert not (tmp_path / "root" / MANIFEST_KEY).exists()


@pytest.mark.slow
def test_ray_makes_the_same_dataset(tmp_path: Path, ray_local: None) -> None:
    config = _config(tmp_path)
    here, on_ray = _prepare(config, tmp_path / "here"), prepare(config, str(tmp_path / "ray"))
    assert here == on_ray
    assert _rows(tmp_path / "here") == _rows(tmp_path / "ray")


def test_an_error_in_a_ray_task_is_the_same_clear_error(tmp_path: Path, ray_local: None) -> None:
    def without_its_reference(shards: Any, settings: Any) -> list[dict[str, Any]]:
        return run_on_ray(shards, replace(settings, reference_digest="0" * 32))

    with pytest.raises(InputError, match="reference file does not exist"):
        prepare(_config(tmp_path), str(tmp_path / "root"), run_shards=without_its_reference)
    assert not open_storage(tmp_path / "root").exists(MANIFEST_KEY)


def test_a_root_on_s3_is_the_same_dataset(tmp_path: Path, s3_root: str) -> None:
    config = _config(tmp_path, cache_dir=str(tmp_path / "cache"))
    here, on_s3 = _prepare(config, tmp_path / "here"), prepare(config, s3_root, run_shards=run_here)
    assert (here.fingerprint, here.shards, here.counts) == (on_s3.fingerprint, on_s3.shards, on_s3.counts)
    assert read_manifest(open_storage(s3_root)) == on_s3
    reference = open_dataset_reference(open_storage(s3_root), on_s3, tmp_path / "cache")
    assert reference.fetch("chr1", 5, 12) == "CCATGGC"


def test_shards_for_the_empty_and_the_small(tmp_path: Path) -> None:
    manifest = _prepare(_config(tmp_path, shards=1000), tmp_path / "root")
    assert len(manifest.shards) == GENES
    assert pl.Series([shard.transcripts for shard in manifest.shards]).to_list() == [1] * GENES
