"""Splicing and coding sequences, hand-checked on both strands."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoformer.splicing import NO_LENGTHS, QuarantinedError, splice
from prepare.tiny import CHR1, CHR2, PROTEIN, RNA, StringGenome, minus_model, model

GENOME = StringGenome({"chr1": CHR1, "chr2": CHR2})


def single(bases: str, *, strand: str = "+", chromosome: str = "c", **changes: Any) -> Any:
    """Splice one exon that is the whole chromosome and all coding, without a stop_codon line."""
    end = len(bases)
    row = model(
        chromosome=chromosome,
        strand=strand,
        exon_starts=[0],
        exon_ends=[end],
        cds_starts=[0],
        cds_ends=[end],
        cds_frames=[0],
        stop_starts=None,
        stop_ends=None,
    )
    options = {name: changes.pop(name) for name in ("broken_cds", "internal_tga") if name in changes}
    return splice(row | changes, StringGenome({chromosome: bases}), **options)


@pytest.mark.parametrize("row", [model(), minus_model()], ids=["plus", "minus"])
def test_golden_transcript(row: dict[str, Any]) -> None:
    found = splice(row, GENOME)
    assert (found.rna, found.protein, found.lengths) == (RNA, PROTEIN, (2, 12, 2))
    assert not any(found.notes.values())


@pytest.mark.parametrize(
    "row", [model(cds_ends=[12, 29]), minus_model(cds_starts=[7, 24])], ids=["plus", "minus"]
)
def test_a_cds_that_holds_its_stop_codon_is_the_same(row: dict[str, Any]) -> None:
    assert splice(row, GENOME).lengths == (2, 12, 2)
    without = row | {"stop_starts": None, "stop_ends": None}
    assert splice(without, GENOME) == splice(row, GENOME)


def test_a_stop_codon_across_an_intron() -> None:
    genome = StringGenome({"c": "ATGGCTT" + "GTAG" + "AACC"})
    row = model(
        chromosome="c",
        exon_starts=[0, 11],
        exon_ends=[7, 15],
        cds_starts=[0],
        cds_ends=[6],
        cds_frames=[0],
        stop_starts=[6, 11],
        stop_ends=[7, 13],
    )
    found = splice(row, genome)
    assert (found.protein, found.lengths) == ("MA", (0, 9, 2))


@pytest.mark.parametrize("strand", ["+", "-"])
@pytest.mark.parametrize(("phase", "protein"), [(0, "AKW"), (1, "LNG"), (2, "*MG")])
def test_phase_skips_the_bases_of_a_codon_begun_before(strand: str, phase: int, protein: str) -> None:
    bases = {0: "GCTAAATGG", 1: "ACTAAATGGG", 2: "AATAAATGGGG"}[phase]
    chromosome = bases if strand == "+" else StringGenome({"c": bases}).fetch("c", 0, len(bases), "-")
    tagged = {"cds_frames": [phase], "cds_start_nf": True, "cds_end_nf": True, "strand": strand}
    if "*" in protein:
        with pytest.raises(QuarantinedError, match="internal_stop"):
            single(chromosome, **tagged)
        return
    found = single(chromosome, **tagged)
    assert found.protein == protein
    assert found.notes["cds_start_incomplete"] == 1


def test_an_incomplete_start_is_no_initiator() -> None:
    assert single("CTGGCTTAA", cds_start_nf=True).protein == "LA"
    assert single("CTGGCTTAA").protein == "MA"


def test_an_incomplete_end_may_leave_a_part_of_a_codon() -> None:
    found = single("ATGGCTAA", cds_end_nf=True)
    assert (found.protein, found.notes["cds_end_incomplete"]) == ("MA", 1)


def test_out_of_frame_is_quarantined_or_kept_without_protein() -> None:
    with pytest.raises(QuarantinedError, match="cds_out_of_frame"):
        single("ATGGCTAA")
    kept = single("ATGGCTAA", broken_cds="no_protein")
    assert (kept.protein, kept.rna, kept.notes["cds_out_of_frame"]) == (None, "ATGGCTAA", 1)


def test_internal_stop_is_quarantined_or_kept_without_protein() -> None:
    with pytest.raises(QuarantinedError, match=r"internal_stop: 1 in the CDS, at residue 2"):
        single("ATGTAAGCTTAA")
    assert single("ATGTAAGCTTAA", broken_cds="no_protein").notes["internal_stop"] == 1


@pytest.mark.parametrize(
    "how",
    [{"sec_starts": [3]}, {"seleno": True}, {"gene_name": "SELENOM"}, {"internal_tga": "selenocysteine"}],
)
def test_selenocysteine(how: dict[str, Any]) -> None:
    found = single("ATGTGAGCTTAA", **how)
    assert (found.protein, found.notes["selenocysteine"]) == ("MUA", 1)


def test_a_known_selenoprotein_can_be_read_strictly() -> None:
    with pytest.raises(QuarantinedError, match="internal_stop"):
        single("ATGTGAGCTTAA", gene_name="SELENOM", internal_tga="stop")
    with pytest.raises(QuarantinedError, match="internal_stop"):
        single("ATGTAAGCTTAA", gene_name="SELENOM")


def test_selenocysteine_feature_on_the_minus_strand_and_across_introns() -> None:
    # minus strand of ATG|gt..ag|TGA GCT TAA laid out backwards
    genome = StringGenome({"c": "TTAAGCTCA" + "CTAC" + "CAT"})
    row = model(
        chromosome="c",
        strand="-",
        exon_starts=[0, 13],
        exon_ends=[9, 16],
        cds_starts=[0, 13],
        cds_ends=[9, 16],
        cds_frames=[0, 0],
        stop_starts=None,
        stop_ends=None,
        sec_starts=[6],
    )
    assert splice(row, genome).protein == "MUA"


def test_mitochondrial_transcripts() -> None:
    completed = single("ATGATATGAT", chromosome="MT")
    assert (completed.protein, completed.notes["stop_by_polyadenylation"]) == ("MMW", 1)
    with pytest.raises(QuarantinedError, match="cds_out_of_frame"):
        single("ATGATATGAC", chromosome="chrM")
    with pytest.raises(QuarantinedError, match="cds_out_of_frame"):
        single("ATGATATGAT", chromosome="chr1", internal_tga="selenocysteine")


def test_a_frameshift_is_read_as_the_ribosome_does() -> None:
    # CDS ATG GCT, skips one base, then AAA TAA
    row = {"cds_starts": [0, 7], "cds_ends": [6, 13], "cds_frames": [0, 0]}
    found = single("ATGGCTGAAATAACC", **row)
    assert (found.protein, found.lengths, found.notes["cds_frameshift"]) == ("MAK", (0, 13, 2), 1)


def test_non_coding_keeps_its_rna_and_no_protein() -> None:
    found = splice(model(cds_starts=None, cds_ends=None), GENOME)
    assert (found.rna, found.protein, found.lengths) == (RNA, None, NO_LENGTHS)


def test_impossible_models_are_quarantined() -> None:
    with pytest.raises(QuarantinedError, match="cds_outside_exons"):
        splice(model(cds_starts=[7, 22], cds_ends=[14, 26]), GENOME)
    with pytest.raises(QuarantinedError, match="cds_outside_exons"):
        splice(model(cds_starts=[7], cds_ends=[26]), GENOME)
    with pytest.raises(QuarantinedError, match="overlapping_exons"):
        splice(model(exon_starts=[5, 10]), GENOME)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=9).filter(lambda steps: sum(steps) <= 36),
    st.sampled_from("+-"),
)
def test_spliced_length_is_the_sum_of_the_exons(steps: list[int], strand: str) -> None:
    edges = [sum(steps[:i]) for i in range(len(steps) // 2 * 2)]
    starts, ends = edges[0::2], edges[1::2]
    row = model(strand=strand, exon_starts=starts, exon_ends=ends, cds_starts=None, cds_ends=None)
    assert len(splice(row, GENOME).rna) == sum(ends) - sum(starts)
