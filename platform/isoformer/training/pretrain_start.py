"""Where pre-training starts: random weights, and for 6-mers an embedding that knows which letters they share.

A 6-mer token hides its letters: to a network AAAAAA and AAAAAC are as far apart as any two of 4,096 symbols,
and the few million tokens of a small corpus hardly teach otherwise. So the embedding starts as a random
rotation of each token's letter features (the letter at each place; its counts of 1-, 2- and 3-mers) plus
noise, at the scale of the usual start. All else starts as published models do. The model card says so.
"""

from __future__ import annotations

import itertools
from typing import Final

import numpy as np
from numpy.typing import NDArray

from isoformer.encoders.nucleotide_transformer import NUCLEOTIDE_ORDER, WORD

NOISE_SHARE: Final = 0.3
_COUNTED_WORDS: Final = (1, 2, 3)


def six_mer_embedding(width: int, seed: int) -> NDArray[np.float32]:
    """(4,100, width) with unit variance: the rows of the 6-mers and of the four single letters."""
    rng = np.random.default_rng([seed, 3])
    features = six_mer_features()
    size = max(width, features.shape[1])
    rotation = np.linalg.qr(rng.normal(size=(size, size)))[0][: features.shape[1], :width]
    rows = features @ rotation
    rows = rows / np.sqrt((rows**2).mean())
    noise = rng.normal(size=rows.shape)
    return (np.sqrt(1 - NOISE_SHARE**2) * rows + NOISE_SHARE * noise).astype(np.float32)


def six_mer_features() -> NDArray[np.float64]:
    """One row a token (6-mers in vocabulary order, then A T C G), columns standardised over the 6-mers."""
    six_mers = _words(WORD)
    tokens = [*six_mers, *NUCLEOTIDE_ORDER]
    places = [
        [token[i : i + 1] == letter for i in range(WORD) for letter in NUCLEOTIDE_ORDER] for token in tokens
    ]
    counted = [word for length in _COUNTED_WORDS for word in _words(length)]
    counts = [
        [sum(token.startswith(word, i) for i in range(len(token))) for word in counted] for token in tokens
    ]
    features = np.hstack([np.array(places, dtype=float), np.array(counts, dtype=float)])
    among_six_mers = features[: len(six_mers)]
    return (features - among_six_mers.mean(axis=0)) / among_six_mers.std(axis=0)


def _words(length: int) -> list[str]:
    return ["".join(letters) for letters in itertools.product(NUCLEOTIDE_ORDER, repeat=length)]
