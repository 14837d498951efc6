"""A gene model and a genome: the spliced RNA, its UTR and CDS lengths, and the protein.

Pure biology, one transcript at a time: `splice` is called by `extraction.py` for every row that comes from an
annotation. Stated policy: the CDS is read from its first whole codon (phase, incomplete start); an incomplete
end may leave a partial codon; a mitochondrial CDS may end in T or TA, which polyadenylation completes. Any
other CDS out of frame, and an internal stop that no selenocysteine explains, is a broken CDS: quarantined, or
kept without its protein.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from isoformer.sequences import (
    MITOCHONDRIAL_CODE,
    Genome,
    Translation,
    genetic_code,
    reverse_complement,
    translate,
)

BrokenCds = Literal["quarantine", "no_protein"]
InternalTga = Literal["known_selenoproteins", "stop", "selenocysteine"]
Lengths = tuple[int | None, int | None, int | None]
NO_LENGTHS: Lengths = (None, None, None)
SELENOPROTEIN_GENES: Final = frozenset(
    [
        "GPX1",
        "GPX2",
        "GPX3",
        "GPX4",
        "GPX6",
        "TXNRD1",
        "TXNRD2",
        "TXNRD3",
        "DIO1",
        "DIO2",
        "DIO3",
        "SEPHS2",
        "MSRB1",
        "SELENOF",
        "SELENOH",
        "SELENOI",
        "SELENOK",
        "SELENOM",
        "SELENON",
        "SELENOO",
        "SELENOP",
        "SELENOS",
        "SELENOT",
        "SELENOV",
        "SELENOW",
        "SEPX1",
        "SEP15",
        "C11orf31",
        "EPT1",
        "SELK",
        "SELM",
        "SEPN1",
        "SELO",
        "SEPP1",
        "SELS",
        "VIMP",
        "SELT",
        "SELV",
        "SEPW1",
        "TXNRD3NB",
    ]
)
"""The 25 human selenoprotein genes (Gladyshev et al. 2016, doi 10.1074/jbc.M116.756155), and older symbols.
"""


class QuarantinedError(Exception):
    """A row that cannot be used: the reason is counted, the detail reported. Never reaches the user as a
    traceback.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Spliced:
    """`lengths` are bases of 5' UTR, CDS (stop codon included) and 3' UTR; they add up to the RNA's. `notes`:
    by reason.
    """

    rna: str
    protein: str | None
    lengths: Lengths
    notes: Mapping[str, int]


def splice(
    row: Mapping[str, Any],
    genome: Genome,
    *,
    broken_cds: BrokenCds = "quarantine",
    internal_tga: InternalTga = "known_selenoproteins",
) -> Spliced:
    """Cut out and join a transcript's exons, and translate its CDS where it has one.

    `row` holds chromosome, strand, exon and CDS coordinates in ascending order, the stop codon's,
    selenocysteine starts, cds_frames and the incomplete-CDS tags, as `read_annotation` gives them. Raises
    QuarantinedError.
    """
    exons = list(zip(row["exon_starts"], row["exon_ends"], strict=True))
    _require_apart(exons)
    rna = _joined(genome, row, exons)
    coding = with_stop_codon(row)
    if not coding:
        return Spliced(rna, None, NO_LENGTHS, {})
    lengths, notes = _lengths(exons, coding, row["strand"], len(rna))
    try:
        protein, coding_notes = _protein(row, genome, coding, internal_tga)
    except QuarantinedError as broken:
        if broken_cds == "quarantine":
            raise
        return Spliced(rna, None, lengths, {**notes, broken.reason: 1})
    return Spliced(rna, protein, lengths, {**notes, **coding_notes})


def with_stop_codon(row: Mapping[str, Any]) -> list[tuple[int, int]]:
    """CDS segments in ascending order with the stop codon's bases joined on, where the CDS does not hold
    them.
    """
    segments = sorted(zip(row["cds_starts"] or [], row["cds_ends"] or [], strict=True))
    if not segments:
        return []
    for start_bp, end_bp in zip(row["stop_starts"] or [], row["stop_ends"] or [], strict=True):
        if not any(start <= start_bp and end_bp <= end for start, end in segments):
            segments.append((start_bp, end_bp))
    return _merged(sorted(segments))


def _merged(segments: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Segments that touch are one; segments that overlap stay apart: a ribosome that slips back reads bases
    twice.
    """
    merged = [segments[0]]
    for start_bp, end_bp in segments[1:]:
        if start_bp == merged[-1][1]:
            merged[-1] = (merged[-1][0], end_bp)
        else:
            merged.append((start_bp, end_bp))
    return merged


def _joined(genome: Genome, row: Mapping[str, Any], segments: Sequence[tuple[int, int]]) -> str:
    plus = "".join(genome.fetch(row["chromosome"], start_bp, end_bp) for start_bp, end_bp in segments)
    return plus if row["strand"] == "+" else reverse_complement(plus)


def _require_apart(exons: Sequence[tuple[int, int]]) -> None:
    for (_, end_bp), (start_bp, _) in itertools.pairwise(exons):
        if start_bp < end_bp:
            raise QuarantinedError("overlapping_exons", f"exon at {start_bp + 1} begins before {end_bp}")


def _lengths(
    exons: Sequence[tuple[int, int]], coding: Sequence[tuple[int, int]], strand: str, rna_bases: int
) -> tuple[Lengths, dict[str, int]]:
    """UTR and CDS bases on the spliced RNA. A CDS that skips or repeats exon bases is a frameshift, and
    noted.
    """
    left, right = _spliced_offset(exons, coding[0][0]), _spliced_offset(exons, coding[-1][1] - 1) + 1
    for start_bp, end_bp in coding:
        inside = _spliced_offset(exons, end_bp - 1) - _spliced_offset(exons, start_bp) + 1
        if inside != end_bp - start_bp:
            raise QuarantinedError("cds_outside_exons", f"CDS {start_bp + 1}-{end_bp} crosses an intron")
    skipped = (right - left) - sum(end_bp - start_bp for start_bp, end_bp in coding)
    notes = {"cds_frameshift": abs(skipped)} if skipped else {}
    before, after = (left, rna_bases - right) if strand == "+" else (rna_bases - right, left)
    return (before, right - left, after), notes


def _spliced_offset(exons: Sequence[tuple[int, int]], position_bp: int) -> int:
    """Index of a genomic base on the exons joined in plus-strand order."""
    index = bisect_right(exons, (position_bp, 1 << 62)) - 1
    if index < 0 or position_bp >= exons[index][1]:
        raise QuarantinedError("cds_outside_exons", f"base {position_bp + 1} of the CDS is in no exon")
    return sum(end_bp - start_bp for start_bp, end_bp in exons[:index]) + position_bp - exons[index][0]


def _protein(
    row: Mapping[str, Any], genome: Genome, coding: Sequence[tuple[int, int]], internal_tga: InternalTga
) -> tuple[str | None, dict[str, int]]:
    code = genetic_code(row["chromosome"])
    phase = _phase(row)
    bases = _joined(genome, row, coding)[phase:]
    complete_start = phase == 0 and not row["cds_start_nf"]
    found = translate(
        bases,
        code=code,
        complete_start=complete_start,
        selenocysteine_codons=_selenocysteine_codons(row, coding, phase),
        any_tga_is_selenocysteine=_reads_tga(row, internal_tga),
    )
    notes = {
        "cds_start_incomplete": int(not complete_start),
        "cds_end_incomplete": int(bool(row["cds_end_nf"])),
        "selenocysteine": found.selenocysteines,
        "alternative_start": int(found.alternative_start),
        **_frame_notes(row, found, bases, code),
    }
    if found.internal_stops:
        where = ", ".join(str(index + 1) for index in found.internal_stops[:5])
        raise QuarantinedError("internal_stop", f"{len(found.internal_stops)} in the CDS, at residue {where}")
    return found.protein or None, notes


def _reads_tga(row: Mapping[str, Any], internal_tga: InternalTga) -> bool:
    """Whether an internal TGA without a feature of its own reads U."""
    known = internal_tga == "known_selenoproteins" and row.get("gene_name") in SELENOPROTEIN_GENES
    return bool(row["seleno"]) or known or internal_tga == "selenocysteine"


def _phase(row: Mapping[str, Any]) -> int:
    frames = row["cds_frames"]
    first = frames[0] if row["strand"] == "+" else frames[-1]
    return int(first or 0)


def _frame_notes(row: Mapping[str, Any], found: Translation, bases: str, code: int) -> dict[str, int]:
    if found.trailing_bases == 0:
        return {} if found.has_stop or row["cds_end_nf"] else {"cds_without_stop": 1}
    if row["cds_end_nf"]:
        return {}
    if code == MITOCHONDRIAL_CODE and "TAA".startswith(bases[-found.trailing_bases :]):
        return {"stop_by_polyadenylation": 1}
    detail = f"{len(bases)} bases after the phase are not whole codons, and the end is not tagged cds_end_NF"
    raise QuarantinedError("cds_out_of_frame", detail)


def _selenocysteine_codons(row: Mapping[str, Any], coding: Sequence[tuple[int, int]], phase: int) -> set[int]:
    """Codon indices of the annotated selenocysteines; each is given by the plus-strand start of a three-base
    feature.
    """
    total = sum(end_bp - start_bp for start_bp, end_bp in coding)
    codons = set()
    for start_bp in row["sec_starts"] or []:
        before = sum(min(end, start_bp) - start for start, end in coding if start < start_bp)
        offset = before if row["strand"] == "+" else total - before - 3
        codons.add((offset - phase) // 3)
    return codons
