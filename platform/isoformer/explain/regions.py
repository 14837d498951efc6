"""Which letters a token stands for, and in which region of its transcript they lie.

A token that spans a boundary belongs to the region that most of its letters are in; of regions with equally
many, to the one nearer the 5' end. Special tokens belong to none.

Shapes: T tokens, L letters, P positions after a reduction; spans are 0-based, half-open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self, cast

import numpy as np
from numpy.typing import NDArray

from isoformer.encoders.esm2 import Esm2Tokenizer
from isoformer.encoders.letters import CROP_POLICY, LongPolicy, clean_sequence, crop
from isoformer.encoders.nucleotide_transformer import FIRST_WORD_ID, WORD, WORDS, SixMerTokenizer, six_mer_ids
from isoformer.encoders.resolution import ONE_VECTOR, max_positions
from isoformer.encoders.rnafm import RnaFmTokenizer
from isoformer.encoders.spec import Tokenizer
from isoformer.errors import EncoderError
from isoformer.schema import Modality

REGIONS: Final = ("5utr", "cds", "3utr")
NO_REGION: Final = -1
NO_SPAN: Final = -1
PLACED: Final = (SixMerTokenizer, Esm2Tokenizer, RnaFmTokenizer)
"""Tokenizers whose tokens can be placed on their sequence."""


@dataclass(frozen=True)
class RnaRegions:
    """Bases of 5' UTR, CDS (stop codon included) and 3' UTR of an RNA."""

    five_utr: int
    cds: int
    three_utr: int

    @classmethod
    def of(cls, five_utr: int | None, cds: int | None, three_utr: int | None, *, bases: int) -> Self | None:
        """None where the RNA has no CDS, or where its regions do not add up to it."""
        if not cds or (five_utr or 0) + cds + (three_utr or 0) != bases:
            return None
        return cls(five_utr or 0, cds, three_utr or 0)

    @property
    def cds_end(self) -> int:
        return self.five_utr + self.cds

    def bounds(self) -> list[tuple[str, int, int]]:
        """Name, start and end of each region."""
        total = self.cds_end + self.three_utr
        edges = (0, self.five_utr, self.cds_end, total)
        return [(name, edges[i], edges[i + 1]) for i, name in enumerate(REGIONS)]

    def of_letters(self) -> NDArray[np.int8]:
        """Index into `REGIONS` of every base (L,)."""
        return np.repeat(np.arange(3, dtype=np.int8), (self.five_utr, self.cds, self.three_utr))


def span_regions(spans_T2: NDArray[np.int64], region_L: NDArray[np.int8]) -> NDArray[np.int8]:
    """Index into `REGIONS` of each span, -1 for an empty one."""
    before_RL = np.zeros((len(REGIONS), len(region_L) + 1), np.int64)
    before_RL[:, 1:] = np.cumsum(region_L[None, :] == np.arange(len(REGIONS))[:, None], axis=1)
    start_T, end_T = np.clip(spans_T2, 0, len(region_L)).T
    letters_RT = before_RL[:, end_T] - before_RL[:, start_T]
    most_T = letters_RT.argmax(axis=0).astype(np.int8)  # the first of equals: the one nearer the 5' end
    return np.where(letters_RT.sum(axis=0) > 0, most_T, np.int8(NO_REGION))


def region_names(spans_T2: NDArray[np.int64], regions: RnaRegions | None) -> list[str | None]:
    """The region of each span; None where there is none."""
    if regions is None:
        return [None] * len(spans_T2)
    found = span_regions(spans_T2, regions.of_letters())
    return [None if index == NO_REGION else REGIONS[index] for index in found]


def token_spans(tokenizer: Tokenizer, sequence: str, modality: Modality) -> NDArray[np.int64]:
    """The letters of `sequence` that each token stands for (T, 2); -1, -1 for special tokens.

    EncoderError for a tokenizer whose tokens cannot be placed.
    """
    if not isinstance(tokenizer, PLACED):
        raise EncoderError(
            f"{type(tokenizer).__name__}: its tokens cannot be placed on the sequence; allowed: tokenizers "
            "of Nucleotide Transformer, ESM-2 and RNA-FM"
        )
    ids_T = tokenizer(sequence).token_ids
    letters_T, is_special_T = _letters_of(tokenizer, ids_T)
    own_T = np.flatnonzero(~is_special_T)
    ends = np.cumsum(letters_T[own_T])
    start = _first_letter(tokenizer, sequence, modality, ids_T[own_T], int(ends[-1]))
    spans_T2 = np.full((len(ids_T), 2), NO_SPAN, np.int64)
    spans_T2[own_T, 1] = start + ends
    spans_T2[own_T, 0] = start + ends - letters_T[own_T]
    return spans_T2


def reduced_spans(spans_L2: NDArray[np.int64], resolution: str) -> NDArray[np.int64]:
    """The spans of positions after the reduction that an embedding dataset's resolution names (P, 2)."""
    if resolution in ONE_VECTOR:
        return np.array([[spans_L2[0, 0], spans_L2[-1, 1]]])
    most, length = max_positions(resolution), len(spans_L2)
    if most is None or most >= length:
        return spans_L2
    place = np.arange(most)
    first, last = place * length // most, -(-(place + 1) * length // most) - 1
    return np.stack([spans_L2[first, 0], spans_L2[last, 1]], axis=1)


def even_spans(letters: int, positions: int) -> NDArray[np.int64]:
    """Positions that divide the letters evenly (P, 2): where nothing better is known."""
    edges = np.arange(positions + 1) * letters // positions
    return np.stack([edges[:-1], edges[1:]], axis=1).astype(np.int64)


def _letters_of(
    tokenizer: Tokenizer, ids_T: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """How many letters each token stands for, and which tokens are special."""
    if isinstance(tokenizer, SixMerTokenizer):
        first = FIRST_WORD_ID[tokenizer.version]
        return np.where(ids_T < first + WORDS, WORD, 1), ids_T < first
    is_special_T = np.zeros(len(ids_T), bool)
    is_special_T[[0, -1]] = True
    return np.ones(len(ids_T), np.int64), is_special_T


def _first_letter(
    tokenizer: Tokenizer, sequence: str, modality: Modality, kept: NDArray[np.int32], letters: int
) -> int:
    """Where the first token begins: what was cropped went by the tokenizer's policy."""
    given = cast("LongPolicy | None", getattr(tokenizer, "long_sequences", None))
    policy = given or CROP_POLICY[modality]
    excess = len(sequence) - letters
    if policy != "center" or not excess:
        return excess if policy == "left" else 0
    if not isinstance(tokenizer, SixMerTokenizer):
        return len(sequence) // 2 - letters // 2
    limit = WORD * (tokenizer.max_tokens - 1)
    within, dropped = crop(clean_sequence(sequence, modality, max_letters=None).letters, policy, limit)
    start = len(sequence) // 2 - limit // 2 if dropped else 0
    whole = six_mer_ids(within, tokenizer.version)
    skipped = _place_of(kept, whole)
    return start + int(_letters_of(tokenizer, whole)[0][:skipped].sum())


def _place_of(part: NDArray[np.int32], whole: NDArray[np.int32]) -> int:
    """Where `part` stands in `whole`; of several places the one nearest the middle."""
    places = [
        start
        for start in np.flatnonzero(whole[: len(whole) - len(part) + 1] == part[0])
        if np.array_equal(whole[start : start + len(part)], part)
    ]
    middle = (len(whole) - len(part)) / 2
    return int(min(places, key=lambda place: abs(place - middle)))
