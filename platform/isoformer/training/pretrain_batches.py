"""Masked batches for pre-training: letters in, packed tokens with targets out, the same for the same seed.

15% of the letter tokens are chosen; of those 80% become `<mask>`, 10% a random letter token, 10% stay (BERT's
recipe, kept by ESM-2 and Nucleotide Transformer). Long sequences are cut at a random place, nucleotide 6-mers
start in a random frame, and DNA is read on either strand: each epoch sees other tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from isoformer.encoders import esm2
from isoformer.encoders import nucleotide_transformer as ntv2
from isoformer.schema import Modality
from isoformer.sequences import reverse_complement
from isoformer.training.pretrain_start import six_mer_embedding

MASKED_SHARE: Final = 0.15
SHORTEST_PROTEIN: Final = 20
SHORTEST_NUCLEOTIDES: Final = 60
_KEPT, _RANDOM = 0.1, 0.1


class Alphabet(Protocol):
    """How a family turns letters into tokens while training."""

    mask_id: int
    letter_ids: NDArray[np.int32]

    def tokens(self, letters: str, rng: np.random.Generator | None) -> NDArray[np.int32]: ...
    def estimated_tokens(self, letters: str) -> int: ...
    def embedding_start(self, width: int, seed: int) -> NDArray[np.float32] | None: ...


@dataclass(frozen=True)
class MaskedBatch:
    """`token_ids` (T,) with masks in place, `offsets` (B+1,), and the true ids at the chosen `places`."""

    token_ids: NDArray[np.int64]
    offsets: list[int]
    places: NDArray[np.int64]
    targets: NDArray[np.int64]


class ProteinAlphabet:
    """ESM-2's tokens. The 20 residues are letters; X and the rare ones are never chosen."""

    mask_id = esm2.MASK_ID
    letter_ids = np.arange(esm2.FIRST_LETTER_ID, esm2.FIRST_LETTER_ID + 20, dtype=np.int32)

    def __init__(self, max_tokens: int) -> None:
        self._tokenizer = esm2.Esm2Tokenizer(max_tokens)
        self._most = max_tokens - 2

    def tokens(self, letters: str, rng: np.random.Generator | None) -> NDArray[np.int32]:
        spare = len(letters) - self._most
        start = int(rng.integers(spare + 1)) if rng is not None and spare > 0 else 0
        return self._tokenizer(letters[start:]).token_ids

    def estimated_tokens(self, letters: str) -> int:
        return min(len(letters), self._most) + 2

    def embedding_start(self, width: int, seed: int) -> NDArray[np.float32] | None:
        return None  # twenty letters: nothing to share


class NucleotideAlphabet:
    """Nucleotide Transformer's tokens. 6-mers and single letters are letters; N is never chosen."""

    mask_id = ntv2.MASK_ID
    letter_ids = np.arange(ntv2.FIRST_WORD_ID[2], ntv2.vocabulary_size(2) - 1, dtype=np.int32)

    def __init__(self, modality: Modality, max_tokens: int) -> None:
        self._modality = modality
        self._tokenizer = ntv2.SixMerTokenizer(modality, max_tokens)
        self._most_letters = (max_tokens - 1) * ntv2.WORD

    def tokens(self, letters: str, rng: np.random.Generator | None) -> NDArray[np.int32]:
        if rng is None:
            return self._tokenizer(letters).token_ids
        spare = max(len(letters) - self._most_letters, min(ntv2.WORD - 1, len(letters) // 2))
        start = int(rng.integers(spare + 1))
        piece = letters[start : start + self._most_letters]
        if self._modality == "dna" and rng.random() < 0.5:
            piece = reverse_complement(piece)
        return self._tokenizer(piece).token_ids

    def estimated_tokens(self, letters: str) -> int:
        return min(len(letters), self._most_letters) // ntv2.WORD + 4

    def embedding_start(self, width: int, seed: int) -> NDArray[np.float32] | None:
        return six_mer_embedding(width, seed)


def alphabet_of(modality: Modality, max_tokens: int) -> Alphabet:
    """ESM-2's tokens for proteins, Nucleotide Transformer's for DNA and RNA."""
    return ProteinAlphabet(max_tokens) if modality == "protein" else NucleotideAlphabet(modality, max_tokens)


def known_stretches(sequences: Sequence[str], modality: Modality) -> list[str]:
    """The stretches without an N (or X) that are long enough to learn from; often the whole."""
    unknown, shortest = ("X", SHORTEST_PROTEIN) if modality == "protein" else ("N", SHORTEST_NUCLEOTIDES)
    return [part for sequence in sequences for part in sequence.split(unknown) if len(part) >= shortest]


class BatchSource:
    """Batches of about `batch_tokens` tokens.

    Batch `index` of `epoch` is a function of the seed and nothing else.
    """

    def __init__(self, sequences: Sequence[str], alphabet: Alphabet, *, batch_tokens: int, seed: int) -> None:
        self._sequences = list(sequences)
        self._alphabet = alphabet
        self._batch_tokens = batch_tokens
        self._seed = seed
        self._tokens = np.array([alphabet.estimated_tokens(sequence) for sequence in self._sequences])

    def epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        """The epoch's batches, as indices of sequences."""
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._sequences))
        batch_of = (np.cumsum(self._tokens[order]) - 1) // self._batch_tokens
        return np.split(order, np.flatnonzero(np.diff(batch_of)) + 1)

    def batch(self, members: NDArray[np.int64], epoch: int, index: int) -> MaskedBatch:
        """Cut, tokenise and mask one batch."""
        rng = np.random.default_rng([self._seed, epoch, index, 1])
        tokens = [self._alphabet.tokens(self._sequences[i], rng) for i in members]
        return masked(tokens, self._alphabet, rng)


def validation_batches(
    sequences: Sequence[str], alphabet: Alphabet, *, batch_tokens: int, most_tokens: int, seed: int
) -> list[MaskedBatch]:
    """Fixed batches, tokenised as encoders do and masked once: the loss on them compares across steps."""
    rng = np.random.default_rng([seed, 2])
    tokens: list[NDArray[np.int32]] = []
    for i in rng.permutation(len(sequences)):
        tokens.append(alphabet.tokens(sequences[i], None))
        if sum(map(len, tokens)) >= most_tokens:
            break
    batch_of = (np.cumsum([len(one) for one in tokens]) - 1) // batch_tokens
    groups = np.split(np.arange(len(tokens)), np.flatnonzero(np.diff(batch_of)) + 1)
    return [masked([tokens[i] for i in group], alphabet, rng) for group in groups]


def letter_counts(
    sequences: Sequence[str], alphabet: Alphabet, size: int, *, most_sequences: int = 4000
) -> NDArray[np.float64]:
    """How often each token occurs, over (a sample of) the training sequences, plus one for letters."""
    counts = np.zeros(size)
    step = max(1, len(sequences) // most_sequences)
    for sequence in sequences[::step]:
        counts += np.bincount(alphabet.tokens(sequence, None), minlength=size)
    letters = np.zeros(size)
    letters[alphabet.letter_ids] = counts[alphabet.letter_ids] + 1
    return letters


def masked(tokens: Sequence[NDArray[np.int32]], alphabet: Alphabet, rng: np.random.Generator) -> MaskedBatch:
    """Lay sequences end to end and mask them; at least one letter of the batch is chosen."""
    true_ids = np.concatenate(tokens).astype(np.int64)
    is_letter = np.isin(true_ids, alphabet.letter_ids)
    chosen = is_letter & (rng.random(len(true_ids)) < MASKED_SHARE)
    if not chosen.any():
        chosen[rng.choice(np.flatnonzero(is_letter))] = True
    places = np.flatnonzero(chosen)
    fate = rng.random(len(places))
    shown = np.full(len(places), alphabet.mask_id, dtype=np.int64)
    shown = np.where(fate < _RANDOM, rng.choice(alphabet.letter_ids, len(places)), shown)
    shown = np.where(fate >= 1 - _KEPT, true_ids[places], shown)
    token_ids = true_ids.copy()
    token_ids[places] = shown
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in tokens])]).tolist()
    return MaskedBatch(token_ids, offsets, places, true_ids[places])
