"""From the genome to a transcript: a change of the plus strand as a change of the spliced RNA and of the
window.

Coordinates are 0-based, half-open, on the plus strand. What touches a splice site is said to do so and is not
spliced as if nothing had happened: which exons are joined then, nobody can tell from coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Final, Literal, Self

from isoformer.explain.edits import Edit
from isoformer.sequences import Genome, reverse_complement, window_bounds

Place = Literal["exon", "splice_site", "intronic", "upstream", "downstream", "transcript_deleted"]
WHOLE: Final = "transcript_deleted"


@dataclass(frozen=True)
class ExonModel:
    """Exons in ascending order, apart from each other, and the strand that they are read on."""

    exons: tuple[tuple[int, int], ...]
    strand: str

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """From a row of `read_annotation`."""
        return cls(tuple(zip(row["exon_starts"], row["exon_ends"], strict=True)), row["strand"])

    @property
    def start_bp(self) -> int:
        return self.exons[0][0]

    @property
    def end_bp(self) -> int:
        return self.exons[-1][1]

    @property
    def tss_bp(self) -> int:
        return self.start_bp if self.strand == "+" else self.end_bp - 1

    def place(self, edit: Edit, splice_site_bases: int) -> Place:
        """Where a change of the plus strand lies."""
        if edit.shift and edit.start <= self.start_bp and edit.end >= self.end_bp:
            return WHOLE
        if self._touches_splice_site(edit, splice_site_bases):
            return "splice_site"
        if any(edit.touches(start, end) for start, end in self.exons):
            return "exon"
        if self.start_bp < edit.start < self.end_bp:
            return "intronic"
        is_left = edit.start <= self.start_bp
        return "upstream" if is_left == (self.strand == "+") else "downstream"

    def rna_edit(self, edit: Edit) -> Edit:
        """The same change on the spliced RNA, for one whose place is "exon".

        One that reaches over the transcript's end changes what is inside; unless letters are exchanged one
        for one, what it inserts stays outside.
        """
        index = next(i for i, (start, end) in enumerate(self.exons) if edit.touches(start, end))
        start, end = self.exons[index]
        inside = Edit(max(edit.start, start), min(edit.end, end), _inside(edit, start, end))
        before = self._bases_before()[index] - start
        left, right = inside.start + before, inside.end + before
        if self.strand == "+":
            return Edit(left, right, inside.letters)
        total = self._bases_before()[-1]
        return Edit(total - right, total - left, reverse_complement(inside.letters))

    def _bases_before(self) -> list[int]:
        return list(accumulate((end - start for start, end in self.exons), initial=0))

    def _touches_splice_site(self, edit: Edit, bases: int) -> bool:
        introns = [(end, start) for (_, end), (start, _) in pairwise(self.exons)]
        if edit.start == edit.end:
            return any(_is_inserted_at_site(edit.start, intron, bases) for intron in introns)
        return any(
            edit.touches(start, min(end, start + bases))
            or edit.touches(max(start, end - bases), end)
            or edit.start < start < edit.end
            or edit.start < end < edit.end
            for start, end in introns
        )


def _is_inserted_at_site(at: int, intron: tuple[int, int], bases: int) -> bool:
    """At the boundary itself, or between it and the last of the intron's bases that count."""
    start, end = intron
    return at in intron or start < at < start + bases or end - bases < at < end


def _inside(edit: Edit, start: int, end: int) -> str:
    if edit.start >= start and edit.end <= end:
        return edit.letters
    if edit.shift:
        return ""
    return edit.letters[max(0, start - edit.start) : len(edit.letters) - max(0, edit.end - end)]


@dataclass(frozen=True)
class EditedGenome:
    """A genome with one change of one chromosome's plus strand, read in its own coordinates."""

    genome: Genome
    edit: Edit

    def fetch(self, chromosome: str, start_bp: int, end_bp: int, strand: str = "+") -> str:
        edit = self.edit
        pieces = []
        if start_bp < edit.start:
            pieces.append(self.genome.fetch(chromosome, start_bp, min(end_bp, edit.start)))
        first = edit.start + len(edit.letters)
        pieces.append(edit.letters[max(0, start_bp - edit.start) : max(0, end_bp - edit.start)])
        if end_bp > first:
            behind = max(start_bp, first) - edit.shift
            pieces.append(self.genome.fetch(chromosome, behind, end_bp - edit.shift))
        plus = "".join(pieces)
        return plus if strand == "+" else reverse_complement(plus)


def moved_tss(tss_bp: int, strand: str, edit: Edit) -> int:
    """Where the transcript's first base lies after the change; where it is gone, the first one that is left.

    What replaces bases of the transcript alone is part of it; what replaces others too stays outside.
    """
    first, past = tss_bp, tss_bp + 1
    if strand == "+":
        return first if first == edit.start < edit.end else edit.moved_start(first)
    return (past + edit.shift if past == edit.end > edit.start else edit.moved_end(past)) - 1


def window_around(genome: Genome, chromosome: str, tss_bp: int, strand: str, window_bases: int) -> str:
    """The DNA window on the transcript's strand, its TSS at `window_bases // 2`."""
    start_bp, end_bp = window_bounds(tss_bp, strand, window_bases)
    return genome.fetch(chromosome, start_bp, end_bp, strand)
