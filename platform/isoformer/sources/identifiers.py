"""Transcript and gene ids, with or without a version, and how a matrix's ids find an annotation's.

`ENST00000269844.4` and `ENST00000269844` are one transcript; `ENST00000652531.1_3` is a lifted one; a
`_PAR_Y` suffix marks the copy on Y of a gene in the pseudoautosomal region, which is a row of its own.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_ENSEMBL = re.compile(r"^(ENS[A-Z]*[GTPE]R?\d+)(?:\.(\d+))?(?:_\d+)?(_PAR_Y)?(?:_\d+)?$")
_REFSEQ = re.compile(r"^([NX][MRPG]_\d+)(?:\.(\d+))?$")
_OLD_PAR_Y = re.compile(r"^(ENS[GT])R(\d+)")


@dataclass(frozen=True)
class Matches:
    """Row numbers in the matrix by wanted id, and how they were found: exact, by_stem, ambiguous, absent."""

    rows: Mapping[str, int]
    counts: Mapping[str, int]
    ambiguous: frozenset[str]


def stem(identifier: str) -> str:
    """The id without version or lift-over suffix; `_PAR_Y` stays, since that copy is another row."""
    found = _ENSEMBL.match(identifier)
    if found:
        return found.group(1) + (found.group(3) or "")
    refseq = _REFSEQ.match(identifier)
    return refseq.group(1) if refseq else identifier


def is_par_y(identifier: str) -> bool:
    """Whether the id itself says that it is the copy on Y: `…_PAR_Y`, or `ENSTR…` in older releases."""
    return "_PAR_Y" in identifier or bool(_OLD_PAR_Y.match(identifier))


def without_par(identifier: str) -> str:
    """The stem that the copies on X and Y share."""
    return _OLD_PAR_Y.sub(r"\g<1>0\2", stem(identifier).removesuffix("_PAR_Y"))


def match_ids(wanted: Iterable[str], present: Sequence[str]) -> Matches:
    """Find each wanted id among `present`: the same id first, then the same stem where one row has it."""
    exact = {identifier: row for row, identifier in enumerate(present)}
    by_stem: dict[str, list[int]] = defaultdict(list)
    for row, identifier in enumerate(present):
        by_stem[stem(identifier)].append(row)
    rows: dict[str, int] = {}
    counts: Counter[str] = Counter()
    ambiguous = set()
    for identifier in wanted:
        candidates = by_stem.get(stem(identifier), [])
        if identifier in exact:
            rows[identifier] = exact[identifier]
            counts["exact"] += 1
        elif len(candidates) == 1:
            rows[identifier] = candidates[0]
            counts["by_stem"] += 1
        elif candidates:
            ambiguous.add(identifier)
            counts["ambiguous"] += 1
        else:
            counts["absent"] += 1
    return Matches(rows, dict(counts), frozenset(ambiguous))
