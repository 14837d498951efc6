"""Sequences longer than an encoder's limit, read in overlapping windows that are put together again.

A window holds the sequence's own first and last special tokens and a stretch of its letters' tokens; windows
start `most - overlap` letters' tokens apart, and the last one ends where the sequence ends. A position that
several windows cover gets the mean of its states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from isoformer.encoders.spec import Packed

if TYPE_CHECKING:
    from torch import Tensor

# T tokens of all sequences, W tokens of all windows, D width


@dataclass(frozen=True)
class Windows:
    """`packed` is what the encoder reads; `token_of_W`: the original pack's token behind each of its own."""

    packed: Packed
    token_of_W: NDArray[np.int64]
    tokens: int

    @classmethod
    def of(
        cls, packed: Packed, *, most_tokens: int, overlap_tokens: int, is_special_T: NDArray[np.bool_]
    ) -> Self:
        """Sequences of at most `most_tokens` stay whole."""
        pieces: list[NDArray[np.int64]] = []
        for start, end in zip(packed.offsets[:-1].tolist(), packed.offsets[1:].tolist(), strict=True):
            pieces += _windows(np.arange(start, end), is_special_T[start:end], most_tokens, overlap_tokens)
        token_of_W = np.concatenate(pieces)
        offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int64)
        return cls(Packed(packed.token_ids[token_of_W], offsets), token_of_W, len(packed.token_ids))

    def joined(self, hidden_WD: Tensor) -> Tensor:
        """The states of the original pack's tokens (T, D)."""
        import torch

        place_W = torch.from_numpy(self.token_of_W).to(hidden_WD.device)
        total_TD = hidden_WD.new_zeros(self.tokens, hidden_WD.shape[1]).index_add_(0, place_W, hidden_WD)
        return total_TD / torch.bincount(place_W, minlength=self.tokens)[:, None]


def _windows(
    tokens: NDArray[np.int64], is_special: NDArray[np.bool_], most: int, overlap: int
) -> list[NDArray[np.int64]]:
    if len(tokens) <= most:
        return [tokens]
    head, tail = int(is_special[0]), int(is_special[-1])
    room = most - head - tail
    last_start = len(tokens) - tail - room
    starts = [*range(head, last_start, room - overlap), last_start]
    ends = (tokens[:head], tokens[len(tokens) - tail :])
    return [np.concatenate([ends[0], tokens[start : start + room], ends[1]]) for start in starts]
