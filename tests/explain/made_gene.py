"""A made gene on a made chromosome, and what a change makes of it, by naive means.

Every base carries a label: its exon, whether it is coding or the first of the CDS, and
whether it is one of the two intron bases beside an exon. A change is made on the list of labelled bases, and
everything is read off that list: no coordinate is ever moved.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

from Bio.Seq import Seq

from isoformer.sequences import reverse_complement


@dataclass(frozen=True)
class Base:
    letter: str
    exon: int | None = None
    coding: bool = False
    first: bool = False
    site: bool = False


@dataclass(frozen=True)
class Gene:
    """Labelled bases of the plus strand, and the strand of the transcript."""

    bases: list[Base]
    strand: str
    sec: list[int] = field(default_factory=list)

    @property
    def letters(self) -> str:
        return "".join(base.letter for base in self.bases)

    def model(self) -> dict[str, Any]:
        """The row that `read_annotation` would give."""
        exons = self._runs([base.exon for base in self.bases])
        coding = self._runs([base.exon if base.coding else None for base in self.bases])
        return {
            "transcript_id": "ENST1", "gene_id": "ENSG1", "gene_name": "MADE", "chromosome": "chr1",
            "strand": self.strand, "biotype": "protein_coding",
            "exon_starts": [s for s, _ in exons], "exon_ends": [e for _, e in exons],
            "cds_starts": [s for s, _ in coding] or None, "cds_ends": [e for _, e in coding] or None,
            "cds_frames": [0] * len(coding), "stop_starts": None, "stop_ends": None, "sec_starts": None,
            "cds_start_nf": False, "cds_end_nf": False, "seleno": False,
        }  # fmt: skip

    def rna(self) -> str:
        plus = "".join(base.letter for base in self.bases if base.exon is not None)
        return plus if self.strand == "+" else reverse_complement(plus)

    def protein(self) -> str | None:
        """From the first coding base to the first stop; None where there is no start codon."""
        order = self.bases if self.strand == "+" else self.bases[::-1]
        flags = [base.first for base in order if base.exon is not None]
        if True not in flags:
            return None
        reading = self.rna()[flags.index(True) :]
        if reading[:3] != "ATG":
            return None
        whole = reading[: len(reading) // 3 * 3]
        return "M" + str(Seq(whole).translate(to_stop=True))[1:]

    def window(self, bases: int) -> str:
        exonic = [i for i, base in enumerate(self.bases) if base.exon is not None]
        letters = self.letters if self.strand == "+" else reverse_complement(self.letters)
        tss = exonic[0] if self.strand == "+" else len(letters) - 1 - exonic[-1]
        padded = "N" * bases + letters + "N" * bases
        return padded[tss + bases - bases // 2 :][:bases]

    def changed(self, start: int, end: int, letters: str) -> Gene:
        """Bases [start, end) replaced."""
        old = self.bases[start:end]
        if len(letters) == len(old):
            new = [replace(base, letter=letter) for base, letter in zip(old, letters, strict=True)]
        else:
            new = [self._inserted(start, end, letter) for letter in letters]
        return replace(self, bases=[*self.bases[:start], *new, *self.bases[end:]])

    def touches_site(self, start: int, end: int) -> bool:
        if start < end:
            return any(base.site for base in self.bases[start:end])
        left, right = self.bases[start - 1], self.bases[start]
        return (left.site and (right.site or right.exon is not None)) or (
            right.site and left.exon is not None
        )

    def _inserted(self, start: int, end: int, letter: str) -> Base:
        """What comes between bases of an exon, or replaces some of it, is of that exon."""
        if start == end:
            left, right = self.bases[start - 1], self.bases[start]
            same = left.exon is not None and left.exon == right.exon
            return Base(letter, left.exon if same else None, same and left.coding and right.coding)
        exons = {base.exon for base in self.bases[start:end]}
        if len(exons) > 1 or exons == {None}:
            return Base(letter)
        exon = exons.pop()
        beside = [self.bases[i] for i in (start - 1, end) if self.bases[i].exon == exon]
        return Base(letter, exon, all(base.coding for base in [*beside, *self.bases[start:end]]))

    def _runs(self, values: list[int | None]) -> list[tuple[int, int]]:
        found: dict[int, tuple[int, int]] = {}
        for index, value in enumerate(values):
            if value is not None:
                found[value] = (found.get(value, (index, 0))[0], index + 1)
        return [found[value] for value in sorted(found, key=lambda v: found[v])]


def made_gene(seed: int, strand: str, *, flank: int = 30, codons_of_cds: int = 12) -> Gene:
    """Three exons; the CDS reaches over all of them."""
    rng = random.Random(seed)
    codons = [a + b + c for a in "ACGT" for b in "ACGT" for c in "ACGT"]
    sense = [codon for codon in codons if codon not in ("TAA", "TAG", "TGA")]
    five, three = _letters(rng, 3, 20), _letters(rng, 12, 40)
    cds = (
        "ATG"
        + "".join(rng.choices(sense, k=rng.randrange(codons_of_cds, codons_of_cds + 18)))
        + rng.choice(["TAA", "TAG", "TGA"])
    )
    rna = five + cds + three
    cuts = sorted(rng.sample(range(len(five) + 4, len(five) + len(cds) - 3), 2))
    pieces = [rna[: cuts[0]], rna[cuts[0] : cuts[1]], rna[cuts[1] :]]
    bases = _plain(rng, flank, 2 * flank)
    place = 0
    for exon, piece in enumerate(pieces):
        for letter in piece:
            coding = len(five) <= place < len(five) + len(cds)
            bases.append(Base(letter, exon, coding, place == len(five)))
            place += 1
        if exon < len(pieces) - 1:
            inner = _plain(rng, 4, 30)
            sites = [Base(letter, site=True) for letter in "GTAG"]
            bases += [*sites[:2], *inner, *sites[2:]]
    bases += _plain(rng, flank, 2 * flank)
    if strand == "+":
        return Gene(bases, strand)
    return Gene([replace(base, letter=reverse_complement(base.letter)) for base in bases[::-1]], strand)


def gtf_lines(gene: Gene, number: int, chromosome: str) -> str:
    """The gene as GENCODE writes it, its stop codon outside the CDS."""
    model = gene.model()
    exons = list(zip(model["exon_starts"], model["exon_ends"], strict=True))
    coding = list(zip(model["cds_starts"], model["cds_ends"], strict=True))
    rows = [("transcript", exons[0][0], exons[-1][1]), *(("exon", *exon) for exon in exons)]
    rows += [("CDS", *part) for part in coding]
    attributes = (
        f'gene_id "ENSG{number:011d}.1"; transcript_id "ENST{number:011d}.1"; gene_name "MADE{number}"; '
        'gene_type "protein_coding"; transcript_type "protein_coding";'
    )
    return "".join(
        f"{chromosome}\tMADE\t{feature}\t{start + 1}\t{end}\t.\t{gene.strand}\t"
        f"{0 if feature == 'CDS' else '.'}\t{attributes}\n"
        for feature, start, end in rows
    )


def _letters(rng: random.Random, least: int, most: int) -> str:
    return "".join(rng.choices("ACGT", k=rng.randrange(least, most)))


def _plain(rng: random.Random, least: int, most: int) -> list[Base]:
    return [Base(letter) for letter in _letters(rng, least, most)]
