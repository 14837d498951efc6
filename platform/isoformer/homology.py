"""Which sequences are nearly the same: MinHash sketches find candidates, an alignment decides.

    sketch      one-permutation MinHash (Li et al. 2012) of a sequence's k-mers: 256 smallest hashes
    pairs       locality-sensitive hashing: a candidate shares two neighbouring slots; then its identity
    clusters    single linkage over the pairs

k is 4 residues (160,000 words: unrelated proteins of 500 residues share one or two) or 12 bases (17 million).
A pair of 80% identity shares 41% of its 4-mers and is a candidate with a probability of 99.9%, an RNA pair of
90% identity with 97%. Proteins are compared by a global alignment (Biopython's), identities over the longer
one; RNAs, too long for it, by the share c of the shorter one's k-mers that the other holds: identity c^(1/k),
as Mash has it. The work grows with the number of sequences and of candidates, not with their square.

Shapes: N sequences, S slots.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, pairwise
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["rna", "protein"]
SLOTS: Final = 256
K: Final[dict[Kind, int]] = {"protein": 4, "rna": 12}
EMPTY: Final = np.uint32(0xFFFFFFFF)
"""Of a slot that no k-mer fell into."""
MOST_IN_A_BUCKET: Final = 64
"""Sequences that share two slots: beyond this each is compared with its neighbours in order only."""
_ALPHABETS: Final[dict[Kind, bytes]] = {"protein": b"ACDEFGHIKLMNPQRSTVWY", "rna": b"ACGT"}
_SPREAD: Final = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Pair:
    """Two sequences by their places, and how much of them is the same, 0 to 1."""

    first: int
    second: int
    identity: float


def sketch(sequence: str, kind: Kind, slots: int = SLOTS) -> NDArray[np.uint32]:
    """(S,). K-mers with another letter than the alphabet's are left out; EMPTY throughout where none is
    left.
    """
    result = np.full(slots, EMPTY, dtype=np.uint32)
    words = kmers(sequence, kind)
    if len(words) == 0:
        return result
    mixed = words * _SPREAD
    mixed ^= mixed >> np.uint64(32)
    mixed *= _SPREAD
    slot = (mixed >> np.uint64(40)) % np.uint64(slots)
    np.minimum.at(result, slot.astype(np.int64), (mixed & np.uint64(0x7FFFFFFF)).astype(np.uint32))
    return result


def kmers(sequence: str, kind: Kind) -> NDArray[np.uint64]:
    """The distinct k-mers, as numbers."""
    k, alphabet = K[kind], _ALPHABETS[kind]
    codes = _codes(kind)[np.frombuffer(sequence.encode("ascii", "replace"), np.uint8)]
    if len(codes) < k:
        return np.empty(0, np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(codes, k)
    known = (windows < len(alphabet)).all(axis=1)
    powers = np.array([len(alphabet) ** (k - 1 - place) for place in range(k)], dtype=np.uint64)
    return np.unique(windows[known].astype(np.uint64) @ powers)


def similar_pairs(
    sequences: Sequence[str], kind: Kind, least_identity: float, *, group: Sequence[Any] | None = None
) -> list[Pair]:
    """Pairs of at least this identity; with `group`, of sequences of different groups only."""
    sketches = np.array([sketch(one, kind) for one in sequences], dtype=np.uint32).reshape(-1, SLOTS)
    found = []
    for first, second in candidates(sketches):
        if group is not None and group[first] == group[second]:
            continue
        identity = identity_of(sequences[first], sequences[second], kind, least_identity)
        if identity >= least_identity:
            found.append(Pair(first, second, identity))
    return found


def candidates(sketches: NDArray[np.uint32]) -> Iterator[tuple[int, int]]:
    """Pairs of places that share two neighbouring slots, each once, the lower first."""
    seen: set[tuple[int, int]] = set()
    for slot in range(0, sketches.shape[1], 2):
        band = sketches[:, slot : slot + 2]
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for place in np.flatnonzero((band != EMPTY).all(axis=1)):
            buckets[band[place].tobytes()].append(int(place))
        for members in buckets.values():
            for pair in _within(members):
                if pair not in seen:
                    seen.add(pair)
                    yield pair


def identity_of(first: str, second: str, kind: Kind, least: float = 0.0) -> float:
    """How much is the same, 0 to 1; 0 where lengths or k-mers rule `least` out."""
    if first == second:
        return 1.0
    if kind == "protein":
        shorter, longer = sorted((len(first), len(second)))
        return 0.0 if shorter < least * longer else _aligned_identity(first, second)
    mine, theirs = kmers(first, kind), kmers(second, kind)
    smaller = min(len(mine), len(theirs))
    if smaller == 0:
        return 0.0
    shared = len(np.intersect1d(mine, theirs, assume_unique=True)) / smaller
    return float(shared ** (1 / K[kind]))


def clusters(count: int, pairs: Sequence[Pair]) -> NDArray[np.int64]:
    """The cluster of each of `count` sequences, single linkage, numbered by their first member."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ends = np.array([[pair.first, pair.second] for pair in pairs], dtype=np.int64).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _within(members: Sequence[int]) -> Iterator[tuple[int, int]]:
    if len(members) <= MOST_IN_A_BUCKET:
        yield from combinations(members, 2)
    else:
        yield from pairwise(members)


def _aligned_identity(first: str, second: str) -> float:
    alignment = _aligner().align(first, second)[0]
    return float(alignment.counts().identities / max(len(first), len(second)))


@cache
def _aligner() -> Any:
    from Bio.Align import PairwiseAligner

    return PairwiseAligner(  # type: ignore[no-untyped-call]
        mode="global", match_score=1, mismatch_score=-1, open_gap_score=-2, extend_gap_score=-0.5
    )


@cache
def _codes(kind: Kind) -> NDArray[np.uint8]:
    table = np.full(256, 255, dtype=np.uint8)
    alphabet = np.frombuffer(_ALPHABETS[kind], np.uint8)
    table[alphabet] = np.arange(len(alphabet))
    if kind == "rna":
        table[ord("U")] = table[ord("T")]
    return table
