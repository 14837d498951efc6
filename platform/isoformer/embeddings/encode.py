"""Encode one tokenised shard: pack to a token budget, survive a full device, set poison aside. No Ray here.

In: `TokenizedShard`. Out: for each asked resolution, digest → (positions, width) array in the stored
type, and the sequences that were quarantined, with the reason. Sequences are packed long first, so the
device meets its worst case at once; when memory runs out the budget is halved, remembered and reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from isoformer.embeddings.key import to_dtype
from isoformer.embeddings.shard_sequences import TokenizedShard
from isoformer.embeddings.token_budget import TokenBudget
from isoformer.encoders.resolution import reduce
from isoformer.encoders.spec import Encoded, Encoder, Packed
from isoformer.errors import EncoderError

# P positions of all sequences of a pack, L positions of one, D width

NOT_FINITE: Final = "not_finite"
ALL_ZEROS: Final = "all_zeros"
OUT_OF_RANGE: Final = "out_of_range"
REFUSED: Final = "refused_by_encoder"

Rows = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class EncodedShard:
    """`rows[resolution]`: digest → array. `quarantined`: digest → reason; it is in no `rows`."""

    rows: dict[str, Rows]
    quarantined: dict[str, str] = field(default_factory=dict)
    packs: int = 0


def encode_shard(
    encoder: Encoder, shard: TokenizedShard, resolutions: Sequence[str], dtype: str, budget: TokenBudget
) -> EncodedShard:
    """Encode every sequence once and reduce it to every resolution.

    EncoderError where one sequence alone is more than the budget or the device's memory can take.
    """
    _require_room(encoder, shard, budget)
    result = EncodedShard({resolution: {} for resolution in resolutions}, dict(shard.quarantined))
    queue = _long_first(shard)
    packs = 0
    while queue:
        members = _next_pack(queue, shard.lengths(), budget.tokens)
        try:
            for index, encoded in _encode(encoder, shard, members):
                _keep(result, shard.digests[index], encoded, dtype)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            _make_room(error, encoder, shard, members, budget)
            continue
        queue, packs = queue[len(members) :], packs + 1
    return EncodedShard(result.rows, result.quarantined, packs)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the machine, had too little memory for a pack."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


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


def _long_first(shard: TokenizedShard) -> list[int]:
    lengths = shard.lengths()
    return sorted(range(len(shard.digests)), key=lambda index: (-int(lengths[index]), shard.digests[index]))


def _next_pack(queue: Sequence[int], lengths: NDArray[np.int64], budget_tokens: int) -> list[int]:
    """The longest sequences left, as many as the budget takes; one that is over it goes alone."""
    cumulative = np.cumsum(lengths[list(queue)])
    return list(queue[: max(1, int(np.searchsorted(cumulative, budget_tokens, side="right")))])


def _encode(
    encoder: Encoder, shard: TokenizedShard, members: Sequence[int]
) -> Iterator[tuple[int, Encoded | None]]:
    """(sequence, its states) one by one; None for a sequence that the encoder refuses even alone."""
    part = shard.part(members)
    try:
        encoded = encoder.encode(Packed(part.token_ids, part.offsets))
    except EncoderError:
        if len(members) == 1:
            yield members[0], None
            return
        for member in members:
            yield from _encode(encoder, shard, [member])
        return
    for place, member in enumerate(members):
        start, end = int(encoded.offsets[place]), int(encoded.offsets[place + 1])
        cls_1D = None if encoded.cls_BD is None else encoded.cls_BD[place : place + 1]
        yield member, Encoded(encoded.hidden_PD[start:end], np.array([0, end - start], np.int64), cls_1D)


def _keep(result: EncodedShard, digest: str, encoded: Encoded | None, dtype: str) -> None:
    reason = REFUSED if encoded is None else _poison(encoded)
    if encoded is not None and reason is None:
        rows = {name: to_dtype(reduce(encoded, name)[0], dtype) for name in result.rows}
        if all(np.isfinite(values_LD).all() for values_LD in rows.values()):
            for name, values_LD in rows.items():
                result.rows[name][digest] = values_LD
            return
        reason = OUT_OF_RANGE
    result.quarantined[digest] = str(reason)


def _poison(encoded: Encoded) -> str | None:
    if not bool(encoded.hidden_PD.isfinite().all()):
        return NOT_FINITE
    return None if bool(encoded.hidden_PD.any()) else ALL_ZEROS


def _make_room(
    error: BaseException, encoder: Encoder, shard: TokenizedShard, members: Sequence[int], budget: TokenBudget
) -> None:
    import torch

    if len(members) == 1:
        tokens = int(shard.lengths()[members[0]])
        raise EncoderError(
            f"{encoder.spec.name}: sequence {shard.digests[members[0]]} of {tokens} tokens "
            "does not fit into the device's memory even alone; use a larger device or fewer actors on it"
        ) from error
    budget.halve()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
