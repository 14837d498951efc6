"""Letters: normal form, digest, strands, translation, windows."""

from __future__ import annotations

import pytest
from Bio.Seq import Seq
from hypothesis import given, settings
from hypothesis import strategies as st

from isoformer.encoders.letters import clean_sequence
from isoformer.errors import InputError
from isoformer.schema import Modality
from isoformer.sequences import (
    MITOCHONDRIAL_CODE,
    STANDARD_CODE,
    dna_window,
    genetic_code,
    normalise,
    reverse_complement,
    sequence_digest,
    translate,
    window_bounds,
)
from prepare.tiny import CHR1, CHR2, WINDOW_16, StringGenome

DNA = st.text("ACGTN", max_size=60)
GENOME = StringGenome({"chr1": CHR1, "chr2": CHR2})


@settings(max_examples=40, deadline=None)
@given(DNA)
def test_reverse_complement_twice_is_the_sequence(bases: str) -> None:
    assert reverse_complement(reverse_complement(bases)) == bases


def test_reverse_complement_by_hand() -> None:
    assert reverse_complement("AACGTN") == "NACGTT"
    assert reverse_complement(CHR1) == CHR2


@settings(max_examples=40, deadline=None)
@given(st.text("ACGT", max_size=90), st.sampled_from([STANDARD_CODE, MITOCHONDRIAL_CODE]))
def test_translation_agrees_with_biopython(bases: str, code: int) -> None:
    bases = bases[: len(bases) // 3 * 3]
    expected = str(Seq(bases).translate(table=code))
    found = translate(bases, code=code, complete_start=False)
    assert found.has_stop == expected.endswith("*")
    assert found.protein == (expected[:-1] if found.has_stop else expected)
    assert list(found.internal_stops) == [i for i, letter in enumerate(found.protein) if letter == "*"]


def test_translation_by_hand() -> None:
    found = translate("ATGGCTAAATGA")
    assert (found.protein, found.has_stop, found.internal_stops) == ("MAK", True, ())
    assert translate("ATGNCTAAATG").protein == "MXK"
    assert translate("ATGNCTAAATG").trailing_bases == 2


def test_mitochondrial_code_reads_other_codons() -> None:
    assert translate("ATGATATGAAGA", code=MITOCHONDRIAL_CODE).protein == "MMW"
    assert translate("ATGATATGAAGA").protein == "MI*R"
    assert [genetic_code(name) for name in ("chrM", "MT", "chr1", None)] == [2, 2, 1, 1]


def test_initiator_reads_m_at_alternative_starts_only_where_the_start_is_complete() -> None:
    assert translate("CTGGCTTAA").protein == "MA"
    assert translate("CTGGCTTAA").alternative_start
    assert translate("CTGGCTTAA", complete_start=False).protein == "LA"
    assert translate("ATTGCTTAA", code=MITOCHONDRIAL_CODE).protein == "MA"


def test_selenocysteine_only_where_something_says_so() -> None:
    bases = "ATGTGAGCTTGAAAATAA"
    assert translate(bases).internal_stops == (1, 3)
    assert translate(bases, selenocysteine_codons={1}).protein == "MUA*K"
    marked = translate(bases, any_tga_is_selenocysteine=True)
    assert (marked.protein, marked.selenocysteines, marked.internal_stops) == ("MUAUK", 2, ())
    assert translate("ATGTAAGCTTAA", any_tga_is_selenocysteine=True).internal_stops == (1,)


@pytest.mark.parametrize(
    ("modality", "sequence", "letters", "counts"),
    [
        ("dna", "acgtn", "ACGTN", {"unknown": 1}),
        ("rna", "ACGUu", "ACGTT", {}),
        ("dna", "ARYT", "ANNT", {"ambiguous_to_n": 2, "unknown": 2}),
        ("protein", "mak*", "MAK", {"terminal_stop": 1}),
        ("protein", "M*UX", "MXUX", {"stop_to_x": 1, "ambiguous": 3}),
    ],
)
def test_normal_form_and_what_it_replaced(
    modality: str, sequence: str, letters: str, counts: dict[str, int]
) -> None:
    assert normalise(sequence, modality) == (letters, counts)  # type: ignore[arg-type]


def test_a_letter_of_no_alphabet_is_named() -> None:
    with pytest.raises(InputError, match=r"position 3 of a rna sequence.*got '!'"):
        normalise("AC!", "rna")
    with pytest.raises(InputError, match="protein"):
        normalise("MA1", "protein")


def test_digest_is_of_the_normal_form() -> None:
    assert sequence_digest(normalise("acgu", "rna")[0]) == sequence_digest("ACGT")
    assert len(sequence_digest("ACGT")) == 32
    assert sequence_digest("ACGT") != sequence_digest("ACGA")


def test_windows_hold_the_first_base_in_the_middle_on_both_strands() -> None:
    plus = dna_window(GENOME, {"chromosome": "chr1", "strand": "+", "tss_bp": 5}, 16)
    minus = dna_window(GENOME, {"chromosome": "chr2", "strand": "-", "tss_bp": 30}, 16)
    assert plus == minus == WINDOW_16
    assert plus[8:12] == "CCAT"


def test_windows_are_padded_at_both_ends() -> None:
    row = {"chromosome": "chr1", "strand": "+", "tss_bp": 5}
    assert dna_window(GENOME, row, 81) == "N" * 35 + CHR1 + "N" * 10


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 35), st.sampled_from("+-"), st.integers(1, 90))
def test_any_window_has_its_length_and_its_tss_in_place(tss_bp: int, strand: str, window_bases: int) -> None:
    start_bp, end_bp = window_bounds(tss_bp, strand, window_bases)
    assert end_bp - start_bp == window_bases
    window = GENOME.fetch("chr1", start_bp, end_bp, strand)
    assert window[window_bases // 2] == GENOME.fetch("chr1", tss_bp, tss_bp + 1, strand)


@pytest.mark.parametrize("letters", ["MAßK", "MAıK", "ACſGT", "ACGT\u212a"])
@pytest.mark.parametrize("modality", ["protein", "rna"])
def test_a_letter_that_becomes_others_in_upper_case_is_refused(letters: str, modality: Modality) -> None:
    with pytest.raises(InputError, match="is not one"):
        normalise(letters, modality)
    assert len(clean_sequence(letters, modality, max_letters=None).letters) == len(letters)
