"""Letters in, clean letters out: one policy for case, U/T, ambiguous letters and cropping, for all.

Policy, the same for all encoders:
- lower case is upper case, counted as `lower_case_bases` or `lower_case_residues`; in nucleotides U is T,
  counted as `uracil_bases`; a protein's final `*`, which stands for the stop, is dropped without a count;
- a nucleotide other than A C G T becomes N and is counted as `ambiguous_bases`;
- a residue outside the model's own alphabet becomes X and is counted as `masked_residues`;
- letters over the limit are cropped, counted as `cropped_bases` or `cropped_residues`. What nobody asked for
  otherwise: RNA on the left (the 3' end stays), DNA on both sides (the centre, where the TSS is, stays),
  protein on the right (the N-terminus stays);
- a sequence without a single valid letter is an EncoderError: no vector is made up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from isoformer.errors import ConfigError, EncoderError
from isoformer.schema import Modality

NUCLEOTIDES: Final = "ACGT"
RESIDUES: Final = "ACDEFGHIKLMNPQRSTVWY"
LongPolicy = Literal["left", "right", "center", "windows"]
"""What is done with a sequence over the limit: the side that is cropped (center: both sides), or windows."""
CROP_POLICY: Final[Mapping[Modality, LongPolicy]] = {"dna": "center", "rna": "left", "protein": "right"}

_NOT_NUCLEOTIDE = re.compile("[^ACGT]")
_NOT_ASCII = re.compile("[^\x00-\x7f]")
_U_TO_T = str.maketrans("U", "T")


@dataclass(frozen=True)
class CleanSequence:
    """Letters that a tokenizer can take without a further look, and what was changed to get there."""

    letters: str
    counts: Mapping[str, int]


def clean_sequence(
    sequence: str,
    modality: Modality,
    *,
    max_letters: int | None,
    alphabet: str = RESIDUES,
    long_sequences: LongPolicy | None = None,
) -> CleanSequence:
    """Apply the policy above. `alphabet`: the residues that a protein model knows besides X.

    `max_letters` null: nothing is cropped. EncoderError where no letter is valid.
    """
    given = sequence.strip()
    if not given.isascii():  # in upper case `ß` would be the residues SS
        given = _NOT_ASCII.sub("?", given)
    given = given.removesuffix("*") if modality == "protein" else given
    kept, dropped = crop(given, long_sequences or CROP_POLICY[modality], max_letters or len(given))
    upper = kept.upper()
    lower_case = 0 if upper == kept else sum(map(str.islower, kept))
    if modality == "protein":
        letters, masked = re.subn(f"[^{re.escape(alphabet)}]", "X", upper)
        reasons = ("lower_case_residues", "masked_residues", "cropped_residues")
        counts = dict(zip(reasons, (lower_case, masked, dropped), strict=True))
    else:
        letters, masked = _NOT_NUCLEOTIDE.subn("N", upper.translate(_U_TO_T))
        reasons = ("lower_case_bases", "ambiguous_bases", "cropped_bases")
        counts = dict(zip(reasons, (lower_case, masked, dropped), strict=True))
        counts["uracil_bases"] = upper.count("U")
    if masked == len(letters):
        raise EncoderError(
            f"{modality} sequence of {len(sequence)} letters has no valid letter: got {sequence[:20]!r}; "
            f"allowed: at least one of {alphabet if modality == 'protein' else NUCLEOTIDES}"
        )
    return CleanSequence(letters, {reason: number for reason, number in counts.items() if number})


def crop_only(name: str, asked: LongPolicy | None, modality: Modality) -> LongPolicy:
    """The crop policy of an encoder that reads no windows. ConfigError where windows are asked for."""
    if asked == "windows":
        raise ConfigError(f"encoder {name} reads no windows: long_sequences may be left, right or center")
    return asked or CROP_POLICY[modality]


def crop(letters: str, policy: LongPolicy, limit: int) -> tuple[str, int]:
    """The letters kept and how many were dropped. Center: index len//2 stays at limit//2."""
    dropped = len(letters) - limit
    if dropped <= 0 or policy == "windows":
        return letters, 0
    start = {"left": dropped, "right": 0, "center": len(letters) // 2 - limit // 2}[policy]
    return letters[start : start + limit], dropped


def joined_letters(letters: str, alphabet: str, letters_per_token: int) -> NDArray[np.int32]:
    """Several letters to a token, as digits of one integer in base `len(alphabet) + 1`.

    A letter outside the alphabet is the digit `len(alphabet)`, and so is what fills up the last token.
    """
    outside = len(alphabet)
    table = np.full(128, outside, dtype=np.int64)
    table[np.frombuffer(alphabet.encode(), np.uint8)] = np.arange(outside)
    codes = table[np.frombuffer(letters.encode(), np.uint8)]
    codes = np.pad(codes, (0, -len(codes) % letters_per_token), constant_values=outside)
    powers = (outside + 1) ** np.arange(letters_per_token, dtype=np.int64)
    return (codes.reshape(-1, letters_per_token) @ powers).astype(np.int32)


def split_letters(token_ids: NDArray[np.int32], alphabet: str, letters_per_token: int) -> NDArray[np.int64]:
    """The letters' codes again, `letters_per_token` for each token."""
    base = len(alphabet) + 1
    powers = base ** np.arange(letters_per_token, dtype=np.int64)
    return (token_ids[:, None].astype(np.int64) // powers % base).reshape(-1)
