"""A change of the genome gives the sequences that a changed genome gives: by hand, and by extraction anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from explain.made_gene import Gene, made_gene
from isoformer.explain.edits import CONSEQUENCES, Edit
from isoformer.explain.exons import ExonModel
from isoformer.explain.located import NO_EXON_MODEL, SPLICE_SITE, Located
from isoformer.explain.rows import DatasetRow
from isoformer.explain.vcf import trimmed
from isoformer.extraction import COPIED, Policy, extract_row
from isoformer.sequence_model import TranscriptSequences
from isoformer.sequences import dna_window, sequence_digest
from isoformer.sources.reference import Reference
from prepare.tiny import StringGenome

WINDOW = 64
POLICY = Policy(
    dna_window_bases=WINDOW, rna_max_bases=10_000, max_unknown_fraction=0.9, broken_cds="no_protein",
    internal_tga="stop",
)  # fmt: skip
READ_AGAIN = ("cds_synonymous", "cds_missense", "inframe", "5utr", "3utr", "stop_gained")


class MadeGenome(StringGenome):
    """With the part of `Reference` that places a transcript."""

    def resolve(self, chromosome: str) -> str | None:
        return chromosome if chromosome in self.chromosomes else None

    def length(self, chromosome: str) -> int:
        return len(self.chromosomes[chromosome])


def located(gene: Gene, policy: Policy = POLICY) -> Located:
    model = gene.model()
    genome = cast(Reference, MadeGenome({"chr1": gene.letters}))
    return Located({**model, "tss_bp": ExonModel.of(model).tss_bp}, genome, policy, model)


def extracted(gene: Gene, policy: Policy = POLICY, *, coding: bool = True) -> TranscriptSequences:
    """The whole extraction, anew, from the changed chromosome and where its exons lie now."""
    model = gene.model()
    if not coding:
        model |= dict.fromkeys(["cds_starts", "cds_ends", "cds_frames"])
    genome = StringGenome({"chr1": gene.letters})
    row = {**dict.fromkeys([*COPIED, "dna", "rna", "protein"]), **model, "tss_bp": ExonModel.of(model).tss_bp}
    finished, _ = extract_row(row, genome, policy)
    window = dna_window(genome, finished) if finished["dna_digest"] else None
    return TranscriptSequences("ENST1", window, finished["rna"], finished["protein"])


@pytest.mark.parametrize("strand", ["+", "-"])
@pytest.mark.parametrize("seed", range(20))
def test_the_reference_is_what_extraction_gives(seed: int, strand: str) -> None:
    gene = made_gene(seed, strand)
    made = located(gene).reference
    assert made == extracted(gene)
    assert (made.dna, made.rna, made.protein) == (gene.window(WINDOW), gene.rna(), gene.protein())


@settings(max_examples=500, deadline=None)
@example(seed=232, strand="+", place=0.28515625, deleted=4, letters="CCAAAAA")  # up to the end of an exon
@given(
    seed=st.integers(0, 400),
    strand=st.sampled_from("+-"),
    place=st.floats(0, 1),
    deleted=st.integers(0, 9),
    letters=st.text("ACGT", max_size=7),
)
def test_any_change_gives_the_sequences_of_the_changed_genome(
    seed: int, strand: str, place: float, deleted: int, letters: str
) -> None:
    gene = made_gene(seed, strand)
    start = 1 + int(place * (len(gene.bases) - 3))
    end = min(start + deleted, len(gene.bases) - 1)
    edit = trimmed(start, gene.letters[start:end], letters)
    transcript = located(gene)
    changed = transcript.changed(edit, 2)
    assert changed.consequence in CONSEQUENCES
    after = gene.changed(edit.start, edit.end, edit.letters)
    assert changed.sequences is not None
    if gene.touches_site(edit.start, edit.end):
        assert (changed.consequence, changed.reason) == ("splice_site", SPLICE_SITE)
        assert (changed.sequences.rna, changed.sequences.protein) == (gene.rna(), gene.protein())
        return
    assert changed.consequence != "splice_site"
    assert changed.sequences.rna == after.rna()
    assert changed.sequences.dna == after.window(WINDOW)
    assert changed.sequences.protein == after.protein()
    anew = extracted(after, coding=changed.consequence in READ_AGAIN)
    assert (changed.sequences.dna, changed.sequences.rna) == (anew.dna, anew.rna)
    if changed.consequence in READ_AGAIN and anew.protein is not None:
        assert changed.sequences.protein == anew.protein


@pytest.mark.parametrize("strand", ["+", "-"])
@pytest.mark.parametrize("seed", range(3))
def test_every_single_base_change_has_the_consequence_of_its_place(seed: int, strand: str) -> None:
    gene = made_gene(seed, strand)
    transcript, protein = located(gene), gene.protein()
    exonic = [i for i, base in enumerate(gene.bases) if base.exon is not None]
    coding = [i for i, base in enumerate(gene.bases) if base.coding]
    for place in range(len(gene.bases)):
        letter = "ACGT"["TACG".index(gene.letters[place])]
        changed = transcript.changed(Edit(place, place + 1, letter), 2)
        base, told = gene.bases[place], changed.consequence
        before_coding = place < coding[0] if strand == "+" else place > coding[-1]
        if base.site:
            assert told == "splice_site"
        elif base.coding:
            after = gene.changed(place, place + 1, letter).protein()
            assert told == _coding_consequence(protein or "", after)
        elif base.exon is not None:
            assert told == ("5utr" if before_coding else "3utr")
        elif exonic[0] < place < exonic[-1]:
            assert told == "intronic"
        else:
            assert told == ("upstream" if before_coding else "downstream")


def _coding_consequence(before: str, after: str | None) -> str:
    if after is None:
        return "start_lost"
    if after == before:
        return "cds_synonymous"
    if len(after) == len(before):
        return "cds_missense"
    return "stop_gained" if len(after) < len(before) else "stop_lost"


def golden_gene() -> Gene:
    """GGGGG CC ATG GCT AAA TGG TGA CCTAAC GGGGG, one exon."""
    from explain.made_gene import Base

    rna = "CCATGGCTAAATGGTGACCTAAC"
    exon = [Base(letter, 0, 2 <= i < 17, i == 2) for i, letter in enumerate(rna)]
    edge = [Base("G")] * 5
    return Gene([*edge, *exon, *edge], "+")


@pytest.mark.parametrize(
    ("start", "ref", "alt", "consequence", "protein"),
    [
        (10, "G", "A", "cds_missense", "MTKW"),
        (12, "T", "C", "cds_synonymous", "MAKW"),
        (7, "A", "C", "start_lost", None),  # CTG is annotated as a start now and then, but is not this one
        (8, "T", "C", "start_lost", None),
        (6, "CATG", "C", "start_lost", None),
        (18, "G", "A", "stop_gained", "MAK"),
        (19, "T", "C", "stop_lost", "MAKWRPN"),
        (20, "G", "A", "cds_synonymous", "MAKW"),  # TGA → TAA
        (10, "G", "GA", "frameshift", "MD"),
        (10, "GCT", "G", "frameshift", "MEMVT"),
        (10, "GCT", "GCTGCT", "inframe", "MAAKW"),
        (12, "TAAA", "T", "inframe", "MAW"),
        (9, "GGC", "GTA", "cds_missense", "MYKW"),
        (5, "C", "T", "5utr", "MAKW"),
        (24, "T", "TTT", "3utr", "MAKW"),
        (6, "C", "CAAA", "5utr", "MAKW"),  # inserted right before the start codon
    ],
)
def test_consequences_by_eye(start: int, ref: str, alt: str, consequence: str, protein: str | None) -> None:
    gene = golden_gene()
    assert gene.letters[start : start + len(ref)] == ref
    changed = located(gene).changed(trimmed(start, ref, alt), 2)
    assert changed.consequence == consequence
    assert changed.sequences is not None and changed.sequences.protein == protein


def test_a_transcript_that_is_gone_is_not_predicted() -> None:
    gene = golden_gene()
    changed = located(gene).changed(Edit(3, 30, ""), 2)
    assert changed.sequences is None and changed.reason == "transcript_deleted"


def test_the_crop_is_done_again() -> None:
    gene = made_gene(7, "-")
    policy = replace(POLICY, rna_max_bases=30)
    transcript = located(gene, policy)
    place = next(i for i, base in enumerate(gene.bases) if base.exon == 0)
    changed = transcript.changed(Edit(place, place + 1, "ACGTACG"), 2)
    after = gene.changed(place, place + 1, "ACGTACG")
    assert changed.sequences is not None and changed.sequences.rna == after.rna()[-30:]
    assert len(after.rna()) > 30


def dataset_row(gene: Gene, **changes: Any) -> DatasetRow:
    made = extracted(gene)
    fields = {
        "transcript_id": "ENST1", "chromosome": "chr1", "strand": gene.strand, "rna": made.rna,
        "protein": made.protein, "dna": made.dna, "dna_digest": sequence_digest(made.dna or ""),
        "tss_bp": ExonModel.of(gene.model()).tss_bp, "five_utr_bases": None, "cds_bases": None,
        "three_utr_bases": None,
    }  # fmt: skip
    return DatasetRow({**fields, **changes}, cast(Any, None))


@pytest.mark.parametrize("strand", ["+", "-"])
def test_without_exons_only_the_window_changes(strand: str) -> None:
    gene = made_gene(3, strand)
    row = dataset_row(gene)
    genome = cast(Reference, MadeGenome({"chr1": gene.letters}))
    bare = Located(row.fields, genome, POLICY, None, row)
    exonic = [i for i, base in enumerate(gene.bases) if base.exon is not None]
    inside = exonic[2] if strand == "+" else exonic[-3]
    letter = "ACGT"["TACG".index(gene.letters[inside])]
    changed = bare.changed(Edit(inside, inside + 1, letter), 2)
    assert changed.reason == NO_EXON_MODEL and changed.consequence == "not_known"
    assert changed.sequences is not None
    assert changed.sequences.dna == gene.changed(inside, inside + 1, letter).window(WINDOW)
    assert (changed.sequences.rna, changed.sequences.protein) == (row.fields["rna"], row.fields["protein"])
    outside = exonic[0] - 3 if strand == "+" else exonic[-1] + 3
    assert bare.changed(Edit(outside, outside + 1, "A"), 2).consequence == "upstream"


def test_an_annotation_that_gives_other_sequences_is_not_used() -> None:
    gene = made_gene(3, "+")
    row = dataset_row(gene, protein="MOTHER")
    genome = cast(Reference, MadeGenome({"chr1": gene.letters}))
    transcript = Located(row.fields, genome, POLICY, gene.model(), row)
    assert transcript.exons is None
    place = int(row.fields["tss_bp"])
    assert transcript.changed(Edit(place, place + 1, ""), 2).reason.startswith("annotation_gives_other")
