"""What an encoder is: a cheap spec, a tokenizer that needs no weights, and weights loaded once per actor.

    spec      importable without torch; names what can change a value
    tokenize  one sequence → token ids (CPU, in a stage of its own)
    encode    packed tokens → hidden states on a device

Shapes: B sequences, T tokens of all sequences laid end to end, P positions of all sequences, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from isoformer.schema import Modality

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class EncoderSpec:
    """Everything about an encoder that is known without loading it.

    `identity` holds all that can change a value apart from the weights: architecture sizes, tokenizer,
    layer, window and crop policy, code version. It goes into the encoder key. `trained` is what the numbers
    may claim: "pre-trained", "supervised", "random", or "none" for a fixed transform without weights.
    """

    name: str
    family: str
    modality: Modality
    width: int
    max_tokens: int
    letters_per_token: float
    licence: str
    trained: str
    source: str
    identity: Mapping[str, Any] = field(default_factory=dict)
    parameter_count: int = 0
    window_bases: tuple[int, int] | None = None
    """DNA encoders: bases read upstream of the TSS and downstream from it (the TSS base included)."""
    reads_windows: bool = False
    """Sequences over `max_tokens` are read whole, in windows of that many."""
    layers: int = 0
    hidden_states: tuple[int, ...] = ()
    """The hidden states whose mean is the output: 0 the embedding's, `layers` the last. Empty: no choice."""
    has_cls: bool = False
    hub: str = ""
    revision: str | None = None
    """The published repository; the commit of the weights, where a manifest or the catalogue names it."""
    parity: float = 1e-5
    """Stated tolerance, relative, of every float32 value against an independent implementation."""
    flops_per_token: float | None = None
    """Of the layers that are run; null: 2 per parameter. Fixed windows: attention's share included."""
    flops_per_token_pair: float = 0.0
    """Attention's share, for each token that a token attends to; 0 for fixed windows."""

    def flops(self, tokens: int, token_pairs: int = 0) -> float:
        """Floating-point operations to encode `tokens` tokens, the sum of whose squared lengths is
        `token_pairs` (in windows: length times a window's tokens).
        """
        each = 2.0 * self.parameter_count if self.flops_per_token is None else self.flops_per_token
        return each * tokens + self.flops_per_token_pair * token_pairs


@dataclass(frozen=True)
class Tokenized:
    """One tokenised sequence. `counts` says what was cropped or masked, by reason, in letters."""

    token_ids: NDArray[np.int32]
    counts: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class Packed:
    """Sequences laid end to end.

    `token_ids` (T,), `offsets` (B+1,): sequence i is [offsets[i], offsets[i+1]).
    """

    token_ids: NDArray[np.int32]
    offsets: NDArray[np.int64]


@dataclass(frozen=True)
class Encoded:
    """Hidden states (P, D) in float32 with special tokens already left out.

    `offsets` (B+1,) into positions. `cls_BD`: the state of each sequence's `<cls>`, where there is one.
    """

    hidden_PD: torch.Tensor
    offsets: NDArray[np.int64]
    cls_BD: torch.Tensor | None = None


class Tokenizer(Protocol):
    """Turns one normalised sequence into tokens, deterministically, without weights."""

    def __call__(self, sequence: str) -> Tokenized: ...


class Encoder(Protocol):
    """Weights on a device.

    A sequence's states are the same alone, in a crowd, in any order, at any budget. An encoder that pads says
    by how much in a method of its own, which `padding_tokens` calls.
    """

    spec: EncoderSpec
    weights_digest: str

    def encode(self, packed: Packed) -> Encoded: ...


@runtime_checkable
class LayeredEncoder(Encoder, Protocol):
    """An encoder whose hidden states can be chosen: several choices share one forward pass."""

    def encode_each(self, packed: Packed, states: Sequence[Sequence[int]]) -> list[Encoded]:
        """For each entry, a `spec.hidden_states`, what `encode` gives where that choice was loaded."""
        ...


def padding_tokens(encoder: Encoder, packed: Packed) -> int:
    """Tokens of padding that the encoder's route adds to this pack; 0 where it has no such method."""
    counted = getattr(encoder, "padding_tokens", None)
    return int(counted(packed)) if counted else 0


def padding_to_longest(offsets: NDArray[np.int64]) -> int:
    """How many tokens are missing where every sequence is to be as long as the longest."""
    lengths = np.diff(offsets)
    return int(lengths.max() * len(lengths) - lengths.sum())


def pack(sequences: Sequence[Tokenized]) -> Packed:
    """Lay tokenised sequences end to end. ValueError where there are none or one is empty."""
    lengths = [len(sequence) for sequence in sequences]
    if not lengths or min(lengths) == 0:
        raise ValueError(f"pack needs sequences of at least one token, got lengths {lengths}")
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Packed(np.concatenate([sequence.token_ids for sequence in sequences]).astype(np.int32), offsets)
