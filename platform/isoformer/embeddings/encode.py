"""Encode the sequences of one tokenised shard: pack to a token budget, survive a full device, set poison
aside. No Ray, no storage.

In: `TokenizedShard`, and what is wanted of the encoder's states. Out: one `EncodedSequence` a sequence,
pack by pack, most tokens first, so that the device meets its worst case at once and rows can be written
while the next pack is computed. When memory runs out the budget is halved, remembered and reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from isoformer.embeddings.config import EmbeddingSpec
from isoformer.embeddings.key import NUMPY_DTYPES
from isoformer.embeddings.shard_sequences import TokenizedShard
from isoformer.embeddings.token_budget import TokenBudget
from isoformer.embeddings.workload import Workload
from isoformer.encoders.resolution import reduce_each
from isoformer.encoders.spec import Encoded, Encoder, LayeredEncoder, Packed, padding_tokens
from isoformer.errors import EncoderError

if TYPE_CHECKING:
    from torch import Tensor

# P positions of all sequences of a pack, L positions of one, B sequences of a pack, D width

NOT_FINITE: Final = "not_finite"
ALL_ZEROS: Final = "all_zeros"
OUT_OF_RANGE: Final = "out_of_range"
REFUSED: Final = "refused_by_encoder"

_OUT_OF_MEMORY: Final = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@dataclass(frozen=True)
class Output:
    """One dataset to be made of an encoder's states: the mean of `hidden_states` (empty: the encoder's only
    output), reduced to `resolution`."""

    key: str
    hidden_states: tuple[int, ...]
    resolution: str

    @classmethod
    def of(cls, dataset: EmbeddingSpec) -> Output:
        return cls(dataset.key, dataset.spec.hidden_states, dataset.resolution)


@dataclass(frozen=True)
class EncodedSequence:
    """`rows`: dataset key → (positions, width) in the stored type; empty where there is a `reason`."""

    digest: str
    rows: dict[str, NDArray[Any]]
    reason: str | None = None


@dataclass(frozen=True)
class PackStats:
    """What a pack took. `padding`: tokens that the encoder's route added to the real ones."""

    load: Workload
    padding: int
    seconds: float


def encode_sequences(
    encoder: Encoder,
    shard: TokenizedShard,
    outputs: Sequence[Output],
    dtype: str,
    budget: TokenBudget,
    *,
    alone: Collection[str] = (),
    before_pack: Callable[[list[str]], None] | None = None,
    after_pack: Callable[[PackStats], None] | None = None,
) -> Iterator[EncodedSequence]:
    """Every sequence once, most tokens first.

    Digests in `alone` share a pack with no other. `before_pack` is told the digests of a pack before the
    device gets it, `after_pack` what it took. EncoderError where one sequence alone is more than the budget
    or the device's memory can take.
    """
    _require_room(encoder, shard, budget)
    order, lengths = order_of_encoding(shard), shard.lengths()
    tokens_before = np.concatenate([[0], np.cumsum(lengths[order])])
    start = 0
    while start < len(order):
        end = _end_of_pack(start, tokens_before, budget.tokens)
        if alone:
            end = _cut_at_lone(start, end, [shard.digests[place] in alone for place in order[start:end]])
        members = order[start:end]
        if before_pack is not None:
            before_pack([shard.digests[place] for place in members])
        started = time.perf_counter()
        encoded = _unless_out_of_memory(encoder, shard, members, outputs, dtype)
        if encoded is None:
            _make_room(encoder, shard, members, budget)
            continue
        if after_pack is not None:
            seconds = time.perf_counter() - started
            load = Workload.of(lengths[members], encoder.spec.max_tokens)
            padding = padding_tokens(encoder, shard.packed(members))
            after_pack(PackStats(load, padding, seconds))
        yield from encoded
        start = end


def order_of_encoding(shard: TokenizedShard) -> list[int]:
    """Places of a shard's sequences: most tokens first, then by digest."""
    lengths = shard.lengths()
    return sorted(range(len(shard.digests)), key=lambda index: (-int(lengths[index]), shard.digests[index]))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the machine, had too little memory for a pack."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def _require_room(encoder: Encoder, shard: TokenizedShard, budget: TokenBudget) -> None:
    """A sequence that is read in windows needs room for one of them."""
    if not budget.must_hold_each or not shard.digests:
        return
    longest = int(shard.lengths().argmax())
    tokens = min(int(shard.lengths()[longest]), encoder.spec.max_tokens)
    if tokens > budget.tokens:
        raise EncoderError(
            f"{encoder.spec.name}: sequence {shard.digests[longest]} has {tokens} tokens, more than the "
            f"token budget of {budget.tokens}; set embed.token_budget to at least {tokens}, or leave it out"
        )


def _end_of_pack(start: int, tokens_before: NDArray[np.int64], budget_tokens: int) -> int:
    """As many as the budget takes; one that is over it goes alone."""
    limit = tokens_before[start] + budget_tokens
    return max(start + 1, int(np.searchsorted(tokens_before, limit, side="right")) - 1)


def _cut_at_lone(start: int, end: int, is_alone: Sequence[bool]) -> int:
    if is_alone[0]:
        return start + 1
    return start + is_alone.index(True) if True in is_alone else end


def _unless_out_of_memory(
    encoder: Encoder, shard: TokenizedShard, members: Sequence[int], outputs: Sequence[Output], dtype: str
) -> list[EncodedSequence] | None:
    """None where memory ran out; the error, and with it what it holds of the device, is gone by then."""
    try:
        return _encode(encoder, shard, members, outputs, dtype)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return None


def _encode(
    encoder: Encoder, shard: TokenizedShard, members: Sequence[int], outputs: Sequence[Output], dtype: str
) -> list[EncodedSequence]:
    """A pack; where the encoder refuses it, its sequences one by one."""
    digests = [shard.digests[place] for place in members]
    try:
        return _rows(digests, _states(encoder, shard.packed(members), outputs), outputs, dtype)
    except EncoderError:
        if len(members) == 1:
            return [EncodedSequence(digests[0], {}, REFUSED)]
    return [one for member in members for one in _encode(encoder, shard, [member], outputs, dtype)]


def _states(encoder: Encoder, packed: Packed, outputs: Sequence[Output]) -> dict[tuple[int, ...], Encoded]:
    """One forward pass, and from it each of the hidden states that an output is made of."""
    wanted = list(dict.fromkeys(output.hidden_states for output in outputs))
    if not isinstance(encoder, LayeredEncoder):
        return {wanted[0]: encoder.encode(packed)}
    return dict(zip(wanted, encoder.encode_each(packed, wanted), strict=True))


def _rows(
    digests: Sequence[str], states: dict[tuple[int, ...], Encoded], outputs: Sequence[Output], dtype: str
) -> list[EncodedSequence]:
    poison = [_poison(encoded) for encoded in states.values()]
    reasons = [next((one[i] for one in poison if one[i]), None) for i in range(len(digests))]
    rows: list[dict[str, NDArray[Any]]] = [{} for _ in digests]
    all_finite = True
    for output in outputs:
        reduced = reduce_each(states[output.hidden_states], output.resolution)
        on_host, is_finite = _on_host(reduced, dtype)
        all_finite = all_finite and is_finite
        for row, values_LD in zip(rows, on_host, strict=True):
            row[output.key] = values_LD
    sequences = []
    for digest, row, reason in zip(digests, rows, reasons, strict=True):
        if reason is None and not all_finite and not all(np.isfinite(one).all() for one in row.values()):
            reason = OUT_OF_RANGE
        sequences.append(EncodedSequence(digest, {} if reason else row, reason))
    return sequences


def _on_host(reduced: list[Tensor], dtype: str) -> tuple[list[NDArray[Any]], bool]:
    """Rounded to the stored type on the device and copied in one go; too large a value becomes infinite.

    The second value: whether all of them are finite.
    """
    import torch

    stored_PD = torch.cat(reduced).to({"f16": torch.float16, "f32": torch.float32}[dtype])
    is_finite = stored_PD.abs().amax().isfinite() if stored_PD.numel() else True  # NaN is larger than all
    flat_PD = stored_PD.cpu().numpy().astype(NUMPY_DTYPES[dtype], copy=False)
    return np.split(flat_PD, np.cumsum([len(values_LD) for values_LD in reduced])[:-1]), bool(is_finite)


def _poison(encoded: Encoded) -> list[str | None]:
    """What is wrong with each sequence's states; found on the device, told in one copy."""
    import torch

    largest_P = encoded.hidden_PD.abs().amax(dim=1)  # NaN where one is
    before_2P = torch.stack([~largest_P.isfinite(), largest_P != 0]).cumsum(dim=1).cpu().numpy()
    before_2P = np.concatenate([np.zeros((2, 1), np.int64), before_2P], axis=1)
    not_finite_B, not_zero_B = np.diff(before_2P[:, encoded.offsets], axis=1)
    return [
        NOT_FINITE if bad else None if good else ALL_ZEROS
        for bad, good in zip(not_finite_B, not_zero_B, strict=True)
    ]


def _make_room(encoder: Encoder, shard: TokenizedShard, members: Sequence[int], budget: TokenBudget) -> None:
    import torch

    if len(members) == 1:
        tokens = int(shard.lengths()[members[0]])
        raise EncoderError(
            f"{encoder.spec.name}: sequence {shard.digests[members[0]]} of {tokens} tokens "
            "does not fit into the device's memory even alone; use a larger device or fewer actors on it"
        )
    budget.halve()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
