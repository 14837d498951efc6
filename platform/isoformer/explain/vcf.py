"""Variants of a VCF file (plain, gzip, BCF): each alternative allele checked against the genome, or refused
with a reason.

The 1-based position becomes 0-based here, once. Alleles are trimmed to what they change, from the right
first, so that an indel stays as far left as the file has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from isoformer.errors import InputError
from isoformer.explain.edits import Edit
from isoformer.sequences import normalise
from isoformer.sources.files import existing_file
from isoformer.sources.reference import Reference

_BREAKENDS: Final = ("[", "]")


@dataclass(frozen=True)
class Variant:
    """One alternative allele. `position`: 1-based, as the file has it; `contig`: as the reference has it.

    Either `edit`, on the plus strand, or a `reason` why it cannot be used.
    """

    record: int
    chromosome: str
    position: int
    name: str
    ref: str
    alt: str
    contig: str = ""
    edit: Edit | None = None
    reason: str = ""
    detail: str = ""


def read_variants(path: str | Path, reference: Reference, *, max_allele_bases: int) -> Iterator[Variant]:
    """Each alternative allele of each record, in the file's order; several alleles make several.

    InputError where the file is not a VCF or is cut off.
    """
    import pysam

    source = existing_file(path, "VCF")
    before = pysam.set_verbosity(0)  # what its C library writes to standard error is said here
    try:
        with pysam.VariantFile(str(source)) as file:
            for number, record in enumerate(file, 1):
                yield from _of_record(number, record, reference, max_allele_bases)
    except (OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"cannot be read as VCF ({error})", file=path) from None
    finally:
        pysam.set_verbosity(before)


def _of_record(number: int, record: Any, reference: Reference, most: int) -> Iterator[Variant]:
    name = "" if record.id is None else str(record.id)
    for alt in record.alts or ("",):
        bare = Variant(number, record.contig, record.pos, name, record.ref, alt)
        yield _checked(bare, reference, most)


def _checked(variant: Variant, reference: Reference, most: int) -> Variant:
    contig = reference.resolve(variant.chromosome)
    if contig is None:
        return _refused(variant, "contig_unknown", "not in the reference")
    if not variant.alt:
        return _refused(variant, "no_alt", "the record has no alternative allele")
    if _is_symbolic(variant.alt):
        return _refused(variant, "symbolic_alt", "only alleles that are spelled out can be applied")
    longest = max(len(variant.ref), len(variant.alt))
    if longest > most:
        return _refused(variant, "too_long", f"{longest} bases, more than explain.max_allele_bases {most}")
    try:
        ref, alt = normalise(variant.ref, "dna")[0], normalise(variant.alt, "dna")[0]
    except InputError as error:
        return _refused(variant, "allele_letters", str(error))
    start = variant.position - 1
    if start < 0 or start + len(ref) > reference.length(contig):
        return _refused(variant, "outside_contig", f"{contig} has {reference.length(contig)} bases")
    found = reference.fetch(contig, start, start + len(ref))
    if found != ref:
        return _refused(variant, "ref_mismatch", f"the reference has {found[:20]} there")
    if ref == alt:
        return _refused(variant, "no_change", "REF and ALT are the same")
    fields = {**vars(variant), "contig": contig, "edit": trimmed(start, ref, alt)}
    return Variant(**fields)


def trimmed(start: int, ref: str, alt: str) -> Edit:
    """What an allele changes: letters that both end with are left out, then those that both begin with."""
    while ref and alt and ref[-1] == alt[-1]:
        ref, alt = ref[:-1], alt[:-1]
    while ref and alt and ref[0] == alt[0]:
        start, ref, alt = start + 1, ref[1:], alt[1:]
    return Edit(start, start + len(ref), alt)


def _is_symbolic(alt: str) -> bool:
    return alt == "*" or alt.startswith("<") or alt.startswith(".") or any(end in alt for end in _BREAKENDS)


def _refused(variant: Variant, reason: str, detail: str) -> Variant:
    return Variant(**{**vars(variant), "reason": reason, "detail": detail})
