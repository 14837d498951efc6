"""Resolutions against torch's own pooling, and the guards."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from isoformer.encoders.resolution import max_positions, positions_after, reduce
from isoformer.encoders.spec import Encoded
from isoformer.errors import ConfigError, EncoderError


def encoded(*lengths: int) -> Encoded:
    generator = torch.Generator().manual_seed(0)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Encoded(torch.randn(int(offsets[-1]), 5, generator=generator), offsets)


@pytest.mark.parametrize("bins", [1, 2, 3, 7])
def test_bins_are_the_means_of_their_span(bins: int) -> None:
    states = encoded(7, 20)
    for index, reduced in enumerate(reduce(states, f"bins:{bins}")):
        own = states.hidden_PD[states.offsets[index] : states.offsets[index + 1]].numpy()
        for i, row in enumerate(reduced):
            start, end = i * len(own) // bins, -(-(i + 1) * len(own) // bins)
            np.testing.assert_allclose(row, own[start:end].mean(axis=0), rtol=1e-5, atol=1e-6)


def test_a_short_sequence_keeps_its_own_positions() -> None:
    states = encoded(3, 9)
    short, long = reduce(states, "bins:8")
    assert (short.shape, long.shape) == ((3, 5), (8, 5))
    assert np.array_equal(short, states.hidden_PD[:3].numpy())
    assert [positions_after(n, "bins:8") for n in (3, 9)] == [3, 8]


def test_pooled_and_tokens() -> None:
    states = encoded(4)
    assert reduce(states, "pooled")[0].shape == (1, 5)
    assert np.array_equal(reduce(states, "tokens")[0], states.hidden_PD.numpy())


@pytest.mark.parametrize("resolution", ["bins", "bins:0", "bins:-1", "mean", "bins:x"])
def test_an_unknown_resolution_is_refused(resolution: str) -> None:
    with pytest.raises(ConfigError, match="pooled, max, cls, bins:N"):
        max_positions(resolution)


@pytest.mark.parametrize(("value", "problem"), [(float("nan"), "not finite"), (0.0, "only zeros")])
def test_values_that_mean_nothing_are_refused(value: float, problem: str) -> None:
    states = Encoded(torch.full((4, 5), value), np.array([0, 4]))
    with pytest.raises(EncoderError, match=problem):
        reduce(states, "pooled")
