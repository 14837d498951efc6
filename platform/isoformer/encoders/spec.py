"""What an encoder is: a cheap spec, a tokenizer that needs no weights, and weights loaded once per actor.

    spec      importable without torch; names what can change a value
    tokenize  one sequence → token ids (CPU, in a stage of its own)
    encode    packed tokens → hidden states on a device

Shapes: B sequences, T tokens of all sequences laid end to end, P positions of all sequences, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

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
    has_cls: bool = False
    hub: str = ""
    revision: str | None = None
    """The published repository; the commit of the weights, where a manifest or the catalogue names it."""
    parity: float = 1e-5
    """Stated tolerance, relative, of every float32 value against an independent implementation."""
    flops_per_token: float = 0.0

    def flops(self, tokens: int) -> float:
        """Floating-point operations to encode `tokens` tokens; where a family states none, 2 per parameter.

        Attention's quadratic part is in it for fixed windows and left out where lengths vary.
        """
        return (self.flops_per_token or 2.0 * self.parameter_count) * tokens


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

    A sequence's states are the same alone, in a crowd, in any order, at any budget.
    """

    spec: EncoderSpec
    weights_digest: str

    def encode(self, packed: Packed) -> Encoded: ...


def pack(sequences: Sequence[Tokenized]) -> Packed:
    """Lay tokenised sequences end to end. ValueError where there are none or one is empty."""
    lengths = [len(sequence) for sequence in sequences]
    if not lengths or min(lengths) == 0:
        raise ValueError(f"pack needs sequences of at least one token, got lengths {lengths}")
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Packed(np.concatenate([sequence.token_ids for sequence in sequences]).astype(np.int32), offsets)
