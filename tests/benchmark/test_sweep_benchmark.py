"""`isoformer benchmark sweep`: its arithmetic. The real thing is minutes of processes being started."""

from __future__ import annotations

import pytest

from isoformer.benchmark.sweep import Pace, _MemoryWatch, _rates, _steady, ratios_of, slot_overheads


def test_ratios_are_of_one_round() -> None:
    ours = [Pace(30.0, 10.0), Pace(20.0, 8.0), Pace(24.0, 6.0)]
    slow = [Pace(3.0, 2.0), Pace(2.0, 2.0), Pace(4.0, 2.0)]
    single = [Pace(15.0, 5.0), Pace(20.0, 8.0), Pace(12.0, 6.0)]
    assert ratios_of(ours, slow, single) == {
        "trials_over_ray_tune": 10.0,
        "trials_over_ray_tune_with_start": 4.0,
        "trials_over_optuna": 2.0,
        "trials_over_optuna_with_start": 1.0,
    }


def test_a_pace_is_between_the_first_end_and_the_last() -> None:
    assert _steady([100.0, 110.0, 115.0, 130.0]) == pytest.approx(6.0)


def test_an_overhead_is_a_slots_time_without_its_training() -> None:
    ends, training = [10.0, 11.0, 20.5, 21.0, 31.0], [9.0, 9.0, 10.0, 9.5, 10.0]
    assert slot_overheads(ends, training, at_once=2) == pytest.approx([0.5, 0.5, 0.5])
    assert slot_overheads(ends, training, at_once=1) == pytest.approx([-8.0, -0.5, -9.0, 0.0])


def test_rates_are_different_and_positive() -> None:
    rates = _rates(200)
    assert len(set(rates)) == 200 and min(rates) > 0


def test_memory_is_seen_to_grow() -> None:
    import time

    with _MemoryWatch() as watch:
        time.sleep(1)
        middle = time.time()
        held = bytearray(80 << 20)
        held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
        time.sleep(1)
    began, ended = watch._samples[0][0], time.time()
    assert watch.mean_between(middle + 0.3, ended) > watch.mean_between(began, middle) + (70 << 20)
    assert len(held) == 80 << 20
