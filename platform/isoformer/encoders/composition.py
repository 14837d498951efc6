"""Composition: the baseline encoder of each modality. No weights: counts of k-mers, nothing else.

In: letters, several to a token (12 bases or 6 residues in one integer: a budget means the same as elsewhere).
Out: one position a token, holding the frequencies of the k-mers that start in it (nucleotides: k = 1, 2, 3;
protein: single residues). Positions are scaled so that their mean, the `pooled` resolution, is exactly the
composition of the whole sequence; k-mers with an N or X in them are left out of count and total.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from isoformer.encoders.letters import (
    NUCLEOTIDES,
    RESIDUES,
    LongPolicy,
    clean_sequence,
    crop_only,
    joined_letters,
    split_letters,
)
from isoformer.encoders.registry import EncoderChoice
from isoformer.encoders.spec import Encoded, EncoderSpec, Packed, Tokenized
from isoformer.schema import Modality

# T tokens of all sequences, P positions (one a token), D width, L letters of one sequence, G letters a token

OPTIONS: Final = frozenset({"long_sequences"})
CODE_VERSION: Final = 1
DNA_WINDOW_BASES: Final = (3072, 3072)
_MODALITY: Final[dict[str, Modality]] = {f"composition-{m}": m for m in ("dna", "rna", "protein")}


@dataclass(frozen=True)
class _Alphabet:
    """The counted letters, how many of them share a token, and the word lengths counted.

    A letter outside the alphabet has the code `len(letters)`; a token is its letters' codes as digits.
    """

    letters: str
    letters_per_token: int
    word_lengths: tuple[int, ...]
    max_tokens: int

    @property
    def width(self) -> int:
        return sum(len(self.letters) ** k for k in self.word_lengths)


_ALPHABETS: Final[dict[Modality, _Alphabet]] = {
    "dna": _Alphabet(NUCLEOTIDES, 12, (1, 2, 3), 1024),
    "rna": _Alphabet(NUCLEOTIDES, 12, (1, 2, 3), 1024),
    "protein": _Alphabet(RESIDUES, 6, (1,), 1024),
}


def get_spec(choice: EncoderChoice) -> EncoderSpec:
    """The fixed transform's spec."""
    modality = _MODALITY[choice.name]
    alphabet = _ALPHABETS[modality]
    return EncoderSpec(
        name=choice.name,
        family="composition",
        modality=modality,
        width=alphabet.width,
        max_tokens=alphabet.max_tokens,
        letters_per_token=float(alphabet.letters_per_token),
        licence="Apache-2.0",
        trained="none",
        source="k-mer frequencies",
        identity={
            "code": CODE_VERSION,
            "alphabet": alphabet.letters,
            "letters_per_token": alphabet.letters_per_token,
            "word_lengths": list(alphabet.word_lengths),
            "max_tokens": alphabet.max_tokens,
            "long_sequences": crop_only(choice.name, choice.long_sequences, modality),
        },
        window_bases=DNA_WINDOW_BASES if modality == "dna" else None,
    )


def load_tokenizer(choice: EncoderChoice) -> CompositionTokenizer:
    modality = _MODALITY[choice.name]
    return CompositionTokenizer(modality, crop_only(choice.name, choice.long_sequences, modality))


def load_encoder(choice: EncoderChoice, device: str) -> CompositionEncoder:
    return CompositionEncoder(get_spec(choice), device)


def weights_digest(choice: EncoderChoice) -> str:
    return "none"


@dataclass(frozen=True)
class CompositionTokenizer:
    """Several letters to a token, as digits of one integer; the last is filled up with uncounted letters."""

    modality: Modality
    long_sequences: LongPolicy

    def __call__(self, sequence: str) -> Tokenized:
        alphabet = _ALPHABETS[self.modality]
        group = alphabet.letters_per_token
        clean = clean_sequence(
            sequence,
            self.modality,
            max_letters=group * alphabet.max_tokens,
            long_sequences=self.long_sequences,
        )
        token_ids = joined_letters(clean.letters, alphabet.letters, group)
        return Tokenized(token_ids, clean.counts)


class CompositionEncoder:
    """Counts on the CPU, whatever the device; the result lies on the device asked for."""

    def __init__(self, spec: EncoderSpec, device: str = "cpu") -> None:
        self.spec = spec
        self.weights_digest = "none"
        self._device = device

    def encode(self, packed: Packed) -> Encoded:
        import torch

        alphabet = _ALPHABETS[self.spec.modality]
        pieces = [
            _composition(
                split_letters(packed.token_ids[start:end], alphabet.letters, alphabet.letters_per_token),
                alphabet,
            )
            for start, end in zip(packed.offsets[:-1], packed.offsets[1:], strict=True)
        ]
        return Encoded(torch.from_numpy(np.concatenate(pieces)).to(self._device), packed.offsets)


def _composition(codes_L: NDArray[np.int64], alphabet: _Alphabet) -> NDArray[np.float32]:
    """(P, D).

    The frequencies of the words that start in each position, times P, so the mean is the whole's.
    """
    size = len(alphabet.letters)
    positions = len(codes_L) // alphabet.letters_per_token
    blocks = []
    for k in alphabet.word_lengths:
        padded = np.concatenate([codes_L, np.full(k - 1, size)])
        letters_kL = np.stack([padded[i : i + len(codes_L)] for i in range(k)])
        valid_L = (letters_kL < size).all(axis=0)
        words_L = (letters_kL * size ** np.arange(k)[:, None]).sum(axis=0)
        place_L = np.arange(len(codes_L)) // alphabet.letters_per_token
        cells = place_L[valid_L] * size**k + words_L[valid_L]
        counts = np.bincount(cells, minlength=positions * size**k).reshape(positions, size**k)
        blocks.append(counts * (positions / max(1, int(valid_L.sum()))))
    return np.concatenate(blocks, axis=1).astype(np.float32)
