"""What is measured of an encoder: the fit, what a run teaches it, and how it is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoformer.embeddings.profile import (
    PROFILE_KEY,
    EncoderCost,
    Profile,
    fit,
    read_profile,
    updated,
    write_profile,
)
from isoformer.embeddings.workload import Workload
from isoformer.storage import open_storage

TRUE = EncoderCost(
    load_seconds=2.0,
    seconds_per_shard=0.02,
    seconds_per_sequence=1e-3,
    seconds_per_token=2e-5,
    seconds_per_token_pair=3e-8,
    hardware="made up",
    tokens=1,
)
RNG = np.random.default_rng(0)
SHARDS = [
    Workload.of(np.full(count, length), 100_000)
    for count, length in (
        (400, 40),
        (20, 40),
        (100, 200),
        (9, 200),
        (60, 600),
        (5, 600),
        (20, 2000),
        (3, 4000),
    )
]
MIXED = [Workload.of(RNG.lognormal(6, 0.8, 50).astype(int) + 1, 100_000) for _ in range(4)]


def timings(works: list[Workload], noise: float = 0.0) -> list[tuple[Workload, float]]:
    return [(work, TRUE.seconds(work) * float(RNG.normal(1, noise))) for work in works]


def coefficients(cost: EncoderCost) -> list[float]:
    return [
        cost.seconds_per_shard,
        cost.seconds_per_sequence,
        cost.seconds_per_token,
        cost.seconds_per_token_pair,
    ]


def test_workloads_add_up_and_windows_bound_attention() -> None:
    one, other = Workload.of([3, 5], 4, output_bytes=7), Workload(1, 2, 3, 4)
    assert one == Workload(2, 8, 3 * 3 + 5 * 4, 7)
    assert one + other == Workload(3, 10, 32, 11)
    assert sum([one, other], Workload()) == one + other
    assert Workload.of([], 4) == Workload()


def test_the_fit_finds_what_made_the_timings() -> None:
    cost = fit(timings(SHARDS + MIXED), load_seconds=2.0, hardware="made up")
    np.testing.assert_allclose(coefficients(cost), coefficients(TRUE), rtol=1e-6)
    assert (cost.load_seconds, cost.hardware, cost.observed_over_modelled) == (2.0, "made up", 1.0)
    assert cost.tokens == sum(work.tokens for work in SHARDS + MIXED)


def test_noise_of_two_per_cent_moves_the_fit_by_a_few() -> None:
    cost = fit(timings((SHARDS + MIXED) * 4, noise=0.02), load_seconds=2.0, hardware="made up")
    np.testing.assert_allclose(coefficients(cost), coefficients(TRUE), rtol=0.06)
    for work in MIXED:
        assert cost.seconds(work) == pytest.approx(TRUE.seconds(work), rel=0.02)


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(1, 4000), st.floats(1e-4, 1e3)), min_size=1))
def test_a_fit_is_never_negative(points: list[tuple[int, int, float]]) -> None:
    made_up = [(Workload.of(np.full(count, length), 1024), seconds) for count, length, seconds in points]
    cost = fit(made_up, load_seconds=0.0, hardware="made up")
    assert min(coefficients(cost)) >= 0 and cost.seconds_per_byte >= 0
    assert np.isfinite(coefficients(cost)).all()
    assert cost.seconds(made_up[0][0]) > 0


def test_what_cannot_be_told_apart_is_put_down_to_tokens() -> None:
    """An encoder that reads one window: sequences, tokens, pairs and bytes go together."""
    works = [
        Workload.of(np.full(count, 512), 512, output_bytes=64 * count) for count in (4, 8, 12, 16, 24, 32)
    ]
    cost = fit([(work, 0.5 + 0.01 * work.sequences) for work in works], load_seconds=0, hardware="made up")
    assert cost.seconds_per_shard == pytest.approx(0.5)
    assert cost.seconds_per_token == pytest.approx(0.01 / 512)
    assert coefficients(cost)[1::2] == [0, 0] and cost.seconds_per_byte == 0


def test_one_timing_gives_a_speed() -> None:
    cost = fit([(Workload.of([1000], 2000), 4.0)], load_seconds=0, hardware="made up")
    assert cost.seconds(Workload.of([500, 500], 2000)) == pytest.approx(4.0)
    with pytest.raises(ValueError, match="at least one token"):
        fit([(Workload(), 1.0)], load_seconds=0, hardware="made up")


class TestARunTeaches:
    """`updated`, with a profile that knows `TRUE` for one encoder."""

    known = Profile().with_cost("e", "cpu", 1, TRUE)

    def after(
        self, factor: float, works: list[Workload] = MIXED, profile: Profile | None = None
    ) -> EncoderCost:
        slower = [(work, TRUE.seconds(work) * factor) for work in works]
        cost = updated(profile or self.known, "e", "cpu", 1, slower, hardware="made up").cost("e", "cpu", 1)
        assert cost is not None
        return cost

    def test_one_factor(self) -> None:
        assert self.after(1.5) == replace(TRUE, observed_over_modelled=pytest.approx(1.5))

    def test_a_later_run_replaces_the_factor(self) -> None:
        once = self.known.with_cost("e", "cpu", 1, self.after(1.5))
        assert self.after(1.2, profile=once).observed_over_modelled == pytest.approx(1.2)

    def test_within_bounds(self) -> None:
        assert self.after(90).observed_over_modelled == 5
        assert self.after(0.01).observed_over_modelled == 0.2

    def test_a_run_of_few_tokens_teaches_nothing(self) -> None:
        assert self.after(3, [Workload.of([999], 2000)]) == TRUE
        assert self.after(3, [Workload.of([1000], 2000)]) != TRUE

    def test_other_hardware_or_an_unknown_encoder_is_fitted_anew(self) -> None:
        seen = timings(SHARDS + MIXED)
        for profile, hardware in ((self.known, "another"), (Profile(), "made up")):
            cost = updated(profile, "e", "cpu", 1, seen, hardware=hardware, load_seconds=4).cost(
                "e", "cpu", 1
            )
            assert cost is not None
            assert (cost.hardware, cost.load_seconds) == (hardware, 4)
            np.testing.assert_allclose(coefficients(cost), coefficients(TRUE), rtol=1e-6)

    def test_a_budget_that_memory_could_not_take_is_remembered(self) -> None:
        seen = timings(MIXED)
        halved = updated(self.known, "e", "cpu", 1, seen, hardware="made up", token_budget=1024)
        later = updated(halved, "e", "cpu", 1, seen, hardware="made up").cost("e", "cpu", 1)
        assert later is not None and later.token_budget == 1024


def test_a_cost_is_of_a_device_and_on_a_cpu_of_a_thread_count() -> None:
    profile = Profile().with_cost("e", "cpu", 1, TRUE).with_cost("e", "cuda", 1, TRUE)
    assert profile.cost("e", "cpu", 1) == TRUE
    assert profile.cost("e", "cpu", 2) is None
    assert profile.cost("e", "cuda", 16) == TRUE
    assert profile.cost("f", "cpu", 1) is None


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    assert read_profile(storage) == Profile()
    profile = Profile({"e|cpu-1": replace(TRUE, token_budget=512)}, startup_seconds=3.5)
    write_profile(storage, profile)
    assert read_profile(storage) == profile


@pytest.mark.parametrize("change", [{"schema_version": 0}, {"layout": 1}])
def test_an_older_layout_reads_as_empty(tmp_path: Path, change: dict[str, int]) -> None:
    storage = open_storage(str(tmp_path))
    write_profile(storage, Profile({"e|cpu-1": TRUE}, 3.5))
    data = json.loads(storage.read_bytes(PROFILE_KEY))
    storage.write_bytes(PROFILE_KEY, json.dumps({**data, **change}).encode())
    assert read_profile(storage) == Profile()
