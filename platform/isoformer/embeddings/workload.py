"""What a piece of work costs an encoder, in counts that need no encoder to know. Adds up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Workload:
    """Sequences, their tokens, the pairs of tokens that attention looks at, and the bytes to store."""

    sequences: int = 0
    tokens: int = 0
    token_pairs: int = 0
    output_bytes: int = 0

    def __add__(self, other: Workload) -> Workload:
        return Workload(
            self.sequences + other.sequences,
            self.tokens + other.tokens,
            self.token_pairs + other.token_pairs,
            self.output_bytes + other.output_bytes,
        )

    @classmethod
    def of(cls, lengths: ArrayLike, max_tokens: int, output_bytes: int = 0) -> Self:
        """Of sequences of these lengths in tokens, read whole or in windows of at most `max_tokens`.

        >>> Workload.of([10, 300], max_tokens=100)
        Workload(sequences=2, tokens=310, token_pairs=30100, output_bytes=0)
        """
        counts = np.asarray(lengths, np.int64)
        pairs = counts * np.minimum(counts, max_tokens)
        return cls(len(counts), int(counts.sum()), int(pairs.sum()), output_bytes)
