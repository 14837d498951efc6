"""Encoding a shard: any budget, poison set aside, memory that runs out. A fake encoder, no Ray."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from isoformer.embeddings.encode import EncodedSequence, Output, PackStats, encode_sequences
from isoformer.embeddings.shard_sequences import TokenizedShard
from isoformer.embeddings.token_budget import TokenBudget
from isoformer.encoders.spec import Encoded, EncoderSpec, Packed
from isoformer.errors import EncoderError

NAN_TOKEN, ZERO_TOKEN, HUGE_TOKEN, REFUSED_TOKEN = 90, 91, 92, 93
SPEC = EncoderSpec(
    name="fake", family="fake", modality="protein", width=2, max_tokens=100, letters_per_token=1,
    licence="none", trained="none", source="here",
)  # fmt: skip


class FakeEncoder:
    """State of a token: (its id, the length of its sequence). Refuses more than `most_tokens` at once."""

    spec, weights_digest = SPEC, "none"

    def __init__(self, most_tokens: int = 10**9) -> None:
        self.most_tokens = most_tokens
        self.packs: list[list[int]] = []

    def padding_tokens(self, packed: Packed) -> int:
        return 7

    def encode(self, packed: Packed) -> Encoded:
        lengths = np.diff(packed.offsets)
        self.packs.append(lengths.tolist())
        if len(packed.token_ids) > self.most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if REFUSED_TOKEN in packed.token_ids:
            raise EncoderError("a token that is not known")
        ids = packed.token_ids.astype(np.float32)
        hidden = torch.from_numpy(np.stack([ids, np.repeat(lengths, lengths)], axis=1).astype(np.float32))
        hidden[ids == NAN_TOKEN] = float("nan")
        hidden[ids == ZERO_TOKEN] = 0
        hidden[ids == HUGE_TOKEN] = 1e6
        return Encoded(hidden, packed.offsets)


def shard(*sequences: list[int]) -> TokenizedShard:
    digests = [f"d{i}" for i in range(len(sequences))]
    offsets = np.concatenate([[0], np.cumsum([len(sequence) for sequence in sequences])]).astype(np.int64)
    return TokenizedShard(digests, np.concatenate([np.array(s, np.int32) for s in sequences]), offsets)


OUTPUTS = [Output(name, (), name) for name in ("tokens", "pooled")]


def encode(
    encoder: FakeEncoder, tokens: TokenizedShard, budget: int | TokenBudget = 100, **hooks: Any
) -> list[EncodedSequence]:
    given = TokenBudget(budget) if isinstance(budget, int) else budget
    return list(encode_sequences(encoder, tokens, OUTPUTS, "f16", given, **hooks))


def rows(sequences: list[EncodedSequence], key: str = "tokens") -> dict[str, Any]:
    return {one.digest: one.rows[key] for one in sequences if one.reason is None}


@pytest.mark.parametrize("budget", [1, 3, 7, 1000])
def test_the_budget_changes_nothing_but_the_packs(budget: int) -> None:
    tokens = shard([1, 2], [3, 4, 5], [6], [7, 8, 9, 10])
    encoder = FakeEncoder()
    result = encode(encoder, tokens, budget)
    assert all(sum(pack) <= budget or len(pack) == 1 for pack in encoder.packs)
    lengths = [length for pack in encoder.packs for length in pack]
    assert lengths == [4, 3, 2, 1]
    assert [one.digest for one in result] == ["d3", "d1", "d0", "d2"]  # the order of encoding
    np.testing.assert_array_equal(rows(result)["d1"], [[3, 3], [4, 3], [5, 3]])
    np.testing.assert_array_equal(rows(result, "pooled")["d3"], [[8.5, 4]])
    assert all(one.reason is None for one in result)


def test_a_pack_is_told_before_and_measured_after() -> None:
    tokens = shard([1, 2], [3, 4, 5], [6], [7, 8, 9, 10])
    told: list[list[str]] = []
    stats: list[PackStats] = []
    encode(FakeEncoder(), tokens, 7, alone={"d1"}, before_pack=told.append, after_pack=stats.append)
    assert told == [["d3"], ["d1"], ["d0", "d2"]]
    assert [(one.load.sequences, one.load.tokens, one.load.token_pairs, one.padding) for one in stats] == [
        (1, 4, 16, 7), (1, 3, 9, 7), (2, 3, 5, 7),
    ]  # fmt: skip


def test_a_budget_that_the_user_set_must_hold_every_sequence() -> None:
    tokens = shard([1, 2], [3, 4, 5, 6])
    with pytest.raises(
        EncoderError, match=r"sequence d1 has 4 tokens.*budget of 3; set embed.token_budget to"
    ):
        encode(FakeEncoder(), tokens, TokenBudget(3, must_hold_each=True))
    done = encode(FakeEncoder(), tokens, TokenBudget(4, must_hold_each=True))
    assert rows(done).keys() == {"d0", "d1"}


def test_poison_is_set_aside_and_the_rest_completes() -> None:
    tokens = shard([1, NAN_TOKEN], [2, 3], [ZERO_TOKEN], [HUGE_TOKEN, 1], [REFUSED_TOKEN, 5, 6], [7])
    result = encode(FakeEncoder(), tokens)
    assert {one.digest: one.reason for one in result if one.reason} == {
        "d0": "not_finite", "d2": "all_zeros", "d3": "out_of_range", "d4": "refused_by_encoder",
    }  # fmt: skip
    assert rows(result).keys() == rows(result, "pooled").keys() == {"d1", "d5"}


def test_running_out_of_memory_halves_the_budget_for_good() -> None:
    tokens = shard(*[[i, i + 1] for i in range(1, 21)])
    encoder, budget = FakeEncoder(most_tokens=6), TokenBudget(20)
    assert len(rows(encode(encoder, tokens, budget))) == 20
    assert (budget.tokens, budget.halvings) == (5, 2)
    assert sum(sum(pack) > 6 for pack in encoder.packs) == 2
    encode(encoder, tokens, budget)
    assert budget.halvings == 2


def test_one_sequence_that_never_fits_is_named() -> None:
    with pytest.raises(EncoderError, match="sequence d1 of 9 tokens does not fit"):
        encode(FakeEncoder(most_tokens=5), shard([1, 2], list(range(1, 10))))


def test_other_failures_are_not_swallowed() -> None:
    class Broken(FakeEncoder):
        def encode(self, packed: Packed) -> Encoded:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        encode(Broken(), shard([1]))


def test_a_shard_without_sequences() -> None:
    empty = TokenizedShard([], np.empty(0, np.int32), np.zeros(1, np.int64), {"d": "no_valid_letter"})
    assert encode(FakeEncoder(), empty) == []
