"""Changes of a sequence, and what they do to the protein that it codes for. Pure biology, no model.

In: an RNA, where its CDS is and what it is read as, and an `Edit`. Out: the changed RNA and protein, and the
consequence in a word. Positions are 0-based, half-open, 5'→3' on the RNA.

Policy: a protein is read from its first codon to the first stop in frame, past the CDS's old end where that
stop is lost, into the 3' UTR. TGA reads U only where it did before. A start is lost where ATG is no longer
ATG; another annotated start, CTG say, may become any that the code table starts with. Where it is lost nobody
knows what is made instead: the protein counts as missing, not as made up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from isoformer.explain.regions import RnaRegions
from isoformer.sequences import genetic_code, translate

CODON: Final = 3
ATG: Final = "ATG"
NO_READING: Final = "cds_does_not_give_the_protein"
"""Reason: the protein is none that this CDS reads as, and stays as it was."""
START_LOST: Final = "start_lost"
CONSEQUENCES: Final = (
    "splice_site", START_LOST, "frameshift", "stop_gained", "stop_lost", "inframe", "cds_missense",
    "cds_synonymous", "cds_unknown", "5utr", "3utr", "noncoding_exon", "intronic", "upstream", "downstream",
    "not_known",
)  # fmt: skip
"""All there are, the gravest first."""


@dataclass(frozen=True)
class Edit:
    """Letters [start, end) are replaced by `letters`; start == end inserts before `start`."""

    start: int
    end: int
    letters: str

    @property
    def shift(self) -> int:
        """How many letters longer the sequence becomes."""
        return len(self.letters) - (self.end - self.start)

    def apply(self, sequence: str) -> str:
        return sequence[: self.start] + self.letters + sequence[self.end :]

    def moved_start(self, start: int) -> int:
        """Where what begins at `start` begins afterwards; what is inserted right before it stays outside.

        Where its first letter is gone, it begins after the edit; letters exchanged one for one keep their
        places.
        """
        if start < self.start or self.shift == 0:
            return start
        return start + self.shift if start >= self.end else self.start + len(self.letters)

    def moved_end(self, end: int) -> int:
        """Where what ends at `end` ends afterwards; what is inserted right behind it stays outside."""
        if end <= self.start or self.shift == 0:
            return end
        return end + self.shift if end > self.end else self.start

    def touches(self, start: int, end: int) -> bool:
        """Whether letters of [start, end) change, or something comes between them."""
        if self.start == self.end:
            return start < self.start < end
        return self.start < end and self.end > start


@dataclass(frozen=True)
class Coding:
    """How a protein is read from an RNA. `start`: of its first whole codon.

    `selenocysteines`: their codons' starts. `before`: residues whose codons are cut off at the RNA's 5'
    end. Without a stop it is read to `end`.
    """

    cds_start: int
    start: int
    end: int
    has_stop: bool
    complete_start: bool
    code: int
    selenocysteines: frozenset[int]
    before: str = ""


@dataclass(frozen=True)
class Reading:
    """A protein and where its stop codon begins, None where it has none; `has_atg` of its first codon."""

    protein: str
    stop: int | None
    has_start: bool
    has_atg: bool


@dataclass(frozen=True)
class Effect:
    """What an edit of the RNA makes. `reason`: what is left out, in a word."""

    rna: str
    protein: str | None
    consequence: str
    reason: str = ""


def find_coding(rna: str, regions: RnaRegions, protein: str, chromosome: str | None) -> Coding | None:
    """How the CDS reads as this protein, its 5' part perhaps cut off; None where it does not."""
    code, bases = genetic_code(chromosome), rna[regions.five_utr : regions.cds_end]
    for complete, phase in ((True, 0), (False, 0), (False, 1), (False, 2)):
        made = translate(bases[phase:], code=code, complete_start=complete, any_tga_is_selenocysteine=True)
        is_cut = regions.five_utr == 0 and not complete
        if not made.protein or not (protein.endswith(made.protein) if is_cut else made.protein == protein):
            continue
        start = regions.five_utr + phase
        coding = Coding(
            cds_start=regions.five_utr,
            start=start,
            end=regions.cds_end,
            has_stop=made.has_stop,
            complete_start=complete,
            code=code,
            selenocysteines=frozenset(start + CODON * i for i, r in enumerate(made.protein) if r == "U"),
            before=protein.removesuffix(made.protein),
        )
        if read_protein(rna, coding).protein == protein:
            return coding
    return None


def read_protein(rna: str, coding: Coding) -> Reading:
    """From the first codon to the first stop in frame."""
    bases = rna[coding.start : None if coding.has_stop else coding.end]
    sec = {(at - coding.start) // CODON for at in coding.selenocysteines if (at - coding.start) % CODON == 0}
    made = translate(bases, code=coding.code, complete_start=coding.complete_start, selenocysteine_codons=sec)
    residues = made.internal_stops[0] if made.internal_stops else len(made.protein)
    stops = made.has_stop or bool(made.internal_stops)
    return Reading(
        coding.before + made.protein[:residues],
        coding.start + CODON * residues if stops else None,
        made.alternative_start or bases.startswith(ATG),
        bases.startswith(ATG),
    )


def rna_effect(
    rna: str, regions: RnaRegions | None, coding: Coding | None, protein: str | None, edit: Edit
) -> Effect:
    """An edit of the RNA, carried into the protein where it touches the CDS."""
    changed = edit.apply(rna)
    if regions is None:
        return Effect(changed, protein, "noncoding_exon")
    if not edit.touches(regions.five_utr, regions.cds_end):
        is_before = edit.end <= regions.five_utr
        return Effect(changed, protein, "5utr" if is_before else "3utr")
    if coding is None or protein is None:
        return Effect(changed, protein, "cds_unknown", NO_READING if protein else "no_protein")
    before, moved = read_protein(rna, coding), _moved(coding, edit)
    after = read_protein(changed, moved)
    if _loses_start(coding, moved, edit, before, after):
        return Effect(changed, None, START_LOST, "protein_not_known")
    return Effect(changed, after.protein or None, _consequence(coding, moved, edit, before, after))


def _moved(coding: Coding, edit: Edit) -> Coding:
    cds_start, end = edit.moved_start(coding.cds_start), edit.moved_end(coding.end)
    start = edit.moved_start(coding.start)
    if not coding.complete_start and coding.cds_start <= edit.start < coding.start:
        start = cds_start + (coding.start - coding.cds_start + edit.shift) % CODON
    return Coding(
        cds_start=cds_start,
        start=start,
        end=max(start, end),
        has_stop=coding.has_stop,
        complete_start=coding.complete_start,
        code=coding.code,
        selenocysteines=frozenset(edit.moved_start(at) for at in coding.selenocysteines),
        before=coding.before,
    )


def _loses_start(coding: Coding, moved: Coding, edit: Edit, before: Reading, after: Reading) -> bool:
    if moved.end <= moved.start:
        return True
    if not coding.complete_start or not before.has_start:
        return False
    is_deleted = edit.shift != 0 and edit.start <= coding.start < edit.end
    return is_deleted or not after.has_start or (before.has_atg and not after.has_atg)


def _consequence(coding: Coding, moved: Coding, edit: Edit, before: Reading, after: Reading) -> str:
    grown = (moved.end - moved.cds_start) - (coding.end - coding.cds_start)
    expected = moved.end - CODON if coding.has_stop else None
    if coding.has_stop and edit.touches(coding.end - CODON, coding.end):
        if after.stop is None or len(after.protein) > len(before.protein):
            return "stop_lost"
        if after.protein == before.protein:
            return "cds_synonymous"
    if grown % CODON:
        return "frameshift"
    if after.stop is not None and (expected is None or after.stop < expected):
        return "stop_gained"
    if expected is not None and (after.stop is None or after.stop > expected):
        return "stop_lost"
    if grown:
        return "inframe"
    return "cds_synonymous" if after.protein == before.protein else "cds_missense"
