"""A genome small enough to read by eye, on both strands, and the files that describe it.

chr1, 36 bases: GGGGG CCATGGC GTAAGTTTAG TAAATGACC TTTTT
                 0     5       12         22        31
Exons [5, 12) and [22, 31); RNA CCATGGCTAAATGACC: 5' UTR CC, CDS ATG GCT AAA TGA, 3' UTR CC; protein MAK.
chr2 is its reverse complement, so the same transcript lies on the minus strand at [24, 31) and [5, 14).
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isoformer.schema import TISSUES
from isoformer.sequences import reverse_complement

CHR1 = "GGGGG" + "CCATGGC" + "GTAAGTTTAG" + "TAAATGACC" + "TTTTT"
CHR2 = "AAAAA" + "GGTCATTTA" + "CTAAACTTAC" + "GCCATGG" + "CCCCC"
RNA = "CCATGGCTAAATGACC"
PROTEIN = "MAK"
WINDOW_16 = "NNNGGGGGCCATGGCG"


class StringGenome:
    """A genome in memory, with the contract of `Reference.fetch`."""

    def __init__(self, chromosomes: Mapping[str, str]) -> None:
        self.chromosomes = chromosomes

    def fetch(self, chromosome: str, start_bp: int, end_bp: int, strand: str = "+") -> str:
        bases = self.chromosomes[chromosome]
        found = "".join(bases[i] if 0 <= i < len(bases) else "N" for i in range(start_bp, end_bp))
        return found if strand == "+" else reverse_complement(found)


def model(**changes: Any) -> dict[str, Any]:
    """The plus-strand gene model, as `read_annotation` would give it, with some fields replaced."""
    row: dict[str, Any] = {
        "transcript_id": "ENST01.1",
        "gene_id": "ENSG01.1",
        "chromosome": "chr1",
        "strand": "+",
        "exon_starts": [5, 22],
        "exon_ends": [12, 31],
        "cds_starts": [7, 22],
        "cds_ends": [12, 26],
        "cds_frames": [0, 1],
        "stop_starts": [26],
        "stop_ends": [29],
        "sec_starts": None,
        "cds_start_nf": False,
        "cds_end_nf": False,
        "seleno": False,
    }
    return row | changes


def minus_model(**changes: Any) -> dict[str, Any]:
    """The same transcript on chr2's minus strand."""
    mirrored = model(
        chromosome="chr2",
        strand="-",
        exon_starts=[5, 24],
        exon_ends=[14, 31],
        cds_starts=[10, 24],
        cds_ends=[14, 29],
        cds_frames=[1, 0],
        stop_starts=[7],
        stop_ends=[10],
    )
    return mirrored | changes


def gtf_lines(number: int, chromosome: str, strand: str, *, version: str = ".1", extra: str = "") -> str:
    """GTF lines of the tiny transcript on chr1 (+) or chr2 (-), GENCODE flavour."""
    attributes = (
        f'gene_id "ENSG{number:011d}{version}"; transcript_id "ENST{number:011d}{version}"; '
        f'gene_type "protein_coding"; gene_name "TINY{number}"; transcript_type "protein_coding"; {extra}'
    )
    plus = [
        ("transcript", 6, 31, "."),
        ("exon", 6, 12, "."),
        ("CDS", 8, 12, "0"),
        ("exon", 23, 31, "."),
        ("CDS", 23, 26, "1"),
        ("stop_codon", 27, 29, "0"),
    ]
    minus = [
        ("transcript", 6, 31, "."),
        ("exon", 25, 31, "."),
        ("CDS", 25, 29, "0"),
        ("exon", 6, 14, "."),
        ("CDS", 11, 14, "1"),
        ("stop_codon", 8, 10, "0"),
    ]
    return "".join(
        f"{chromosome}\tHAVANA\t{feature}\t{start}\t{end}\t.\t{strand}\t{frame}\t{attributes}\n"
        for feature, start, end, frame in (plus if strand == "+" else minus)
    )


def transcript_id(number: int, version: str = ".1") -> str:
    return f"ENST{number:011d}{version}"


def write_genome(folder: Path, chromosomes: Mapping[str, str] | None = None) -> Path:
    path = folder / "genome.fa"
    text = "".join(
        f">{name}\n{bases}\n" for name, bases in (chromosomes or {"chr1": CHR1, "chr2": CHR2}).items()
    )
    path.write_text(text)
    return path


def write_annotation(folder: Path, text: str) -> Path:
    path = folder / "annotation.gtf.gz"
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    return path


def write_expression(folder: Path, identifiers: Sequence[str], tissues: Sequence[str] = TISSUES) -> Path:
    """TPM of row r and tissue t is r + t / 10."""
    rows = [[name, *(str(r + t / 10) for t in range(len(tissues)))] for r, name in enumerate(identifiers)]
    path = folder / "expression.tsv"
    path.write_text("\n".join("\t".join(row) for row in [["transcript_id", *tissues], *rows]) + "\n")
    return path
