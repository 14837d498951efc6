"""Letters of DNA, RNA and protein: one alphabet, one digest, one genetic code.

In: strings as files have them (lower case, U or T, ambiguity codes). Out: normalised strings over `ACGTN` or
the amino acid letters, their digests, reverse complements, translations and TSS-centred windows.
`transcripts.py`, the encoders' tokenizers and the embedding stage all go through here, so that one sequence
has one digest everywhere.

Policy, the same for all: nucleotides are upper case with U read as T, and every IUPAC ambiguity code becomes
N. Proteins are upper case, lose one terminal `*`, keep B J O U X Z, and an internal `*` becomes X. Everything
replaced is counted.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Protocol

from isoformer.errors import InputError
from isoformer.schema import Modality

STANDARD_CODE: Final = 1
MITOCHONDRIAL_CODE: Final = 2
"""NCBI genetic code tables: the standard one, and the vertebrate mitochondrial one."""

_COMPLEMENT = str.maketrans("ACGTN", "TGCAN")
_TO_DNA = str.maketrans("Uu", "TT")
_AMBIGUOUS_NUCLEOTIDE = re.compile("[RYSWKMBDHV]")
_NOT_A_NUCLEOTIDE = re.compile("[^ACGTNRYSWKMBDHV]")
_NOT_A_RESIDUE = re.compile(r"[^ACDEFGHIKLMNPQRSTVWYBJOUXZ*]")
_AMBIGUOUS_RESIDUE = re.compile("[BJOUXZ]")


class Genome(Protocol):
    """What a window is cut from: `Reference` is one."""

    def fetch(self, chromosome: str, start_bp: int, end_bp: int, strand: str = "+") -> str: ...


@dataclass(frozen=True)
class Translation:
    """A protein and what was met on the way. `internal_stops` are residue indices that no annotation
    explains.
    """

    protein: str
    has_stop: bool
    internal_stops: tuple[int, ...]
    selenocysteines: int
    alternative_start: bool
    trailing_bases: int


def normalise(sequence: str, modality: Modality) -> tuple[str, dict[str, int]]:
    """The one spelling of a sequence, and how many letters were replaced, by reason.

    InputError where a letter belongs to no alphabet of this modality.
    """
    return (
        _normalised_protein(sequence)
        if modality == "protein"
        else _normalised_nucleotides(sequence, modality)
    )


def sequence_digest(sequence: str) -> str:
    """blake2b, 16 bytes, in hex, of a normalised sequence: the key of its embedding."""
    return hashlib.blake2b(sequence.encode("ascii"), digest_size=16).hexdigest()


def reverse_complement(sequence: str) -> str:
    """The other strand, 5'→3'; `sequence` is normalised."""
    return sequence.translate(_COMPLEMENT)[::-1]


def translate(
    coding: str,
    *,
    code: int = STANDARD_CODE,
    complete_start: bool = True,
    selenocysteine_codons: Collection[int] = (),
    any_tga_is_selenocysteine: bool = False,
) -> Translation:
    """Translate in-frame normalised DNA; codons with an N are X; the terminal stop is left out.

    A recognised alternative start codon of a complete CDS reads M, as the initiator tRNA does.
    `selenocysteine_codons` are codon indices where TGA reads U. Bases after the last whole codon are counted,
    not translated.
    """
    residues, starts = _code_table(code)
    codons = [coding[i : i + 3] for i in range(0, len(coding) - 2, 3)]
    letters = [residues.get(codon, "X") for codon in codons]
    has_stop = bool(letters) and letters[-1] == "*"
    if has_stop:
        letters.pop()
    found = [i for i, letter in enumerate(letters) if letter == "*"]
    tga = [
        i for i in found if codons[i] == "TGA" and (any_tga_is_selenocysteine or i in selenocysteine_codons)
    ]
    for i in tga:
        letters[i] = "U"
    alternative = complete_start and bool(letters) and codons[0] != "ATG" and codons[0] in starts
    if alternative:
        letters[0] = "M"
    unexplained = tuple(i for i in found if letters[i] == "*")
    return Translation("".join(letters), has_stop, unexplained, len(tga), alternative, len(coding) % 3)


def genetic_code(chromosome: str | None) -> int:
    """The code that a chromosome's genes are read with: table 2 for the mitochondrion."""
    return MITOCHONDRIAL_CODE if chromosome in {"chrM", "MT", "M", "chrMT"} else STANDARD_CODE


def window_bounds(tss_bp: int, strand: str, window_bases: int) -> tuple[int, int]:
    """Plus-strand bounds of the window with the TSS at index `window_bases // 2`, read on `strand`."""
    before = window_bases // 2 if strand == "+" else window_bases - window_bases // 2 - 1
    return tss_bp - before, tss_bp - before + window_bases


def dna_window(reference: Genome, row: Mapping[str, Any], window_bases: int | None = None) -> str:
    """A row's DNA window on the transcript's strand, N-padded at chromosome ends; TSS base at index window //
    2.

    `row` holds `chromosome`, `strand` and either `window_start_bp`/`window_end_bp` or, with `window_bases`,
    `tss_bp`.
    """
    if window_bases is None:
        start_bp, end_bp = row["window_start_bp"], row["window_end_bp"]
    else:
        start_bp, end_bp = window_bounds(row["tss_bp"], row["strand"], window_bases)
    return reference.fetch(row["chromosome"], start_bp, end_bp, row["strand"])


def unknown_fraction(sequence: str) -> float:
    """The share of N in a normalised nucleotide sequence; 0 for an empty one."""
    return sequence.count("N") / len(sequence) if sequence else 0.0


def _normalised_nucleotides(sequence: str, modality: Modality) -> tuple[str, dict[str, int]]:
    letters = _upper(sequence).translate(_TO_DNA)
    _refuse(_NOT_A_NUCLEOTIDE, letters, modality, "A C G T U N and IUPAC ambiguity codes")
    letters, ambiguous = _AMBIGUOUS_NUCLEOTIDE.subn("N", letters)
    return letters, _counted(ambiguous_to_n=ambiguous, unknown=letters.count("N"))


def _normalised_protein(sequence: str) -> tuple[str, dict[str, int]]:
    letters = _upper(sequence)
    _refuse(_NOT_A_RESIDUE, letters, "protein", "the 20 amino acids, B J O U X Z and *")
    terminal = letters.endswith("*")
    letters = letters[:-1] if terminal else letters
    internal = letters.count("*")
    letters = letters.replace("*", "X")
    ambiguous = len(_AMBIGUOUS_RESIDUE.findall(letters))
    return letters, _counted(terminal_stop=int(terminal), stop_to_x=internal, ambiguous=ambiguous)


def _upper(sequence: str) -> str:
    """In upper case, where that is a letter for a letter: `ß` would become the residues SS."""
    letters = sequence.strip()
    return letters.upper() if letters.isascii() else letters


def _refuse(pattern: re.Pattern[str], letters: str, modality: Modality, allowed: str) -> None:
    bad = pattern.search(letters)
    if bad:
        problem = f"letter at position {bad.start() + 1} of a {modality} sequence is not one"
        raise InputError(problem, value=bad.group(), allowed=allowed)


def _counted(**counts: int) -> dict[str, int]:
    return {reason: count for reason, count in counts.items() if count}


@cache
def _code_table(code: int) -> tuple[dict[str, str], frozenset[str]]:
    from Bio.Data.CodonTable import unambiguous_dna_by_id

    table = unambiguous_dna_by_id[code]
    residues = {**table.forward_table, **dict.fromkeys(table.stop_codons, "*")}
    return residues, frozenset(table.start_codons)
