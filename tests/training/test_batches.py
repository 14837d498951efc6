"""Batches: their order is a function of (seed, epoch), they pad little, and nothing depends on how they are
made.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from isoformer.training import batches
from isoformer.training.batches import BatchFeed, ahead, epoch_order, in_order
from made_dataset import made_dataset

CPU = torch.device("cpu")


def test_an_epoch_has_every_row_once_and_its_order_repeats() -> None:
    rows, lengths = np.arange(10, 90), np.arange(100) % 13
    first = epoch_order(rows, lengths, 8, seed=3, epoch=5)
    again = epoch_order(rows, lengths, 8, seed=3, epoch=5)
    assert sorted(np.concatenate(first)) == list(rows)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    for other in (
        epoch_order(rows, lengths, 8, seed=3, epoch=6),
        epoch_order(rows, lengths, 8, seed=4, epoch=5),
    ):
        assert (np.concatenate(first) != np.concatenate(other)).any()


def test_buckets_by_length_pad_less() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, size=1000)
    rows = np.arange(1000)

    def padded_to(order) -> int:
        return sum(len(part) * lengths[part].max() for part in order)

    shuffled = np.random.default_rng(1).permutation(rows)
    bucketed = padded_to(epoch_order(rows, lengths, 16, seed=0, epoch=0))
    assert bucketed < 0.7 * padded_to(in_order(shuffled, 16))
    assert bucketed < 1.2 * lengths.sum()


def test_gathered_and_ungathered_batches_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data = made_dataset()
    at_once = BatchFeed(data, data.modalities, CPU)
    monkeypatch.setattr(batches, "GATHERED_BYTES_LIMIT", 0)
    by_batch = BatchFeed(data, data.modalities, CPU)
    assert at_once.gathered is not None and by_batch.gathered is None
    order = epoch_order(data.rows("train"), at_once.total_length_N, 7, seed=0, epoch=0)
    for one, other in zip(at_once.batches(order), by_batch.batches(order), strict=True):
        assert (one.rows == other.rows).all()
        for modality in data.modalities:
            torch.testing.assert_close(
                one.tokens[modality].hidden_BLD, other.tokens[modality].hidden_BLD, rtol=0, atol=0
            )
            assert torch.equal(one.tokens[modality].is_token_BL, other.tokens[modality].is_token_BL)


def test_a_batch_holds_the_rows_own_states() -> None:
    data = made_dataset()
    rows = np.array([7, 3, 20])
    tokens = BatchFeed(data, ("protein",), CPU).batch(rows).tokens["protein"]
    states = data.states["protein"]
    for place, row in enumerate(rows):
        sequence = states.sequence_of_N[row]
        expected = (
            states.flat_PD[states.offsets[sequence] : states.offsets[sequence + 1]] if sequence >= 0 else []
        )
        got = tokens.hidden_BLD[place, tokens.is_token_BL[place]].numpy()
        np.testing.assert_array_equal(got, np.asarray(expected, dtype=np.float32).reshape(-1, states.width))
    assert not tokens.is_token_BL[0].any()  # row 7 lacks its protein


def test_read_only_arrays_are_enough() -> None:
    data = made_dataset()
    for array in (data.targets, data.target_mask, data.states["dna"].flat_PD):
        array.setflags(write=False)  # as Ray's object store gives them
    assert BatchFeed(data, data.modalities, CPU).batch(np.arange(4)).targets_BK.shape == (4, 3)


def test_an_error_while_making_a_batch_ahead_is_raised_to_the_reader() -> None:
    data = made_dataset()
    feed = BatchFeed(replace(data), data.modalities, CPU)

    def made():
        yield feed.batch(np.arange(2))
        raise ValueError("broken")

    reader = ahead(made())
    next(reader)
    with pytest.raises(ValueError, match="broken"):
        next(reader)


def test_a_reader_that_stops_early_leaves_no_thread() -> None:
    import threading

    data = made_dataset()
    feed = BatchFeed(data, data.modalities, CPU)
    reader = ahead(feed.batch(np.arange(2)) for _ in range(100))
    next(reader)
    before = threading.active_count()
    reader.close()
    assert threading.active_count() < before
