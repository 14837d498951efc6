"""A gene's stretch of genome, read once: its transcripts and their windows overlap, and small reads are slow.

Called by `extraction.py`, one cut a gene.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

from isoformer.sequences import reverse_complement
from isoformer.sources.reference import Reference

_GENE_CUT_LIMIT_BP: Final = 20_000_000
"""A 'gene' that spans more is cut exon by exon; the longest human gene has 2.5 million bases."""


class GeneCut:
    """The stretch of plus strand that a gene's transcripts and their windows need, cut once; reads like the
    whole.
    """

    def __init__(self, reference: Reference, chromosome: str, start_bp: int, bases: str) -> None:
        self.reference, self.chromosome = reference, chromosome
        self.start_bp, self.bases = start_bp, bases

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], reference: Reference, window_bases: int) -> Self:
        starts = [row["exon_starts"][0] if row["exon_starts"] else row["tss_bp"] for row in rows]
        ends = [row["exon_ends"][-1] if row["exon_ends"] else row["tss_bp"] + 1 for row in rows]
        start_bp, end_bp = min(starts) - window_bases, max(ends) + window_bases
        chromosome = rows[0]["chromosome"]
        small = end_bp - start_bp <= _GENE_CUT_LIMIT_BP
        return cls(
            reference, chromosome, start_bp, reference.fetch(chromosome, start_bp, end_bp) if small else ""
        )

    def fetch(self, chromosome: str, start_bp: int, end_bp: int, strand: str = "+") -> str:
        if not self.bases:
            return self.reference.fetch(chromosome, start_bp, end_bp, strand)
        bases = self.bases[start_bp - self.start_bp : end_bp - self.start_bp]
        return bases if strand == "+" else reverse_complement(bases)
