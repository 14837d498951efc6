"""`isoformer benchmark scale`: its memory marks and its arithmetic on made-up runs."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from isoformer.benchmark import scale
from isoformer.benchmark.scale import Peaks, Run, peak_bytes, ratios_of
from isoformer.encoders.registry import EncoderChoice

HELD_BYTES = 64 << 20
HOLD = f"""
import subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; held = b'1' * {HELD_BYTES}; time.sleep(60)"],
                          executable=sys.executable)
print("up", flush=True); time.sleep(60)
"""


def run(seconds: float, times: int = 1, driver: float = 100.0, worker: float = 500.0) -> Run:
    return Run(seconds, 10 * times, 4000 * times, driver, worker)


def test_ratios_are_of_one_round_and_per_sequence() -> None:
    ratios = ratios_of(
        [run(1.0), run(2.0), run(4.0)],
        [run(8.0, 8, driver=105), run(32.0, 8, driver=110, worker=400), run(16.0, 8, worker=600)],
        {"one_node": [run(2.0), run(2.0), run(3.0)], "two_nodes": [run(2.0), run(4.0), run(2.0)]},
    )
    assert ratios == {
        "driver_memory": 1.05,
        "worker_memory": 1.0,
        "cost_per_sequence": 1.0,  # 1, 2 and 0.5
        "two_nodes_over_one": 1.0,  # 1, 0.5 and 1.5
    }


def test_a_high_water_mark_stays() -> None:
    me = psutil.Process()
    before = me.memory_info().rss
    held = b"1" * max(HELD_BYTES, 2 * (peak_bytes(me) - before))
    marked = peak_bytes(me)
    del held
    assert marked >= before + HELD_BYTES // 2
    assert peak_bytes(me) == pytest.approx(marked, rel=0.01)  # the kernel counts in batches
    assert me.memory_info().rss < marked - HELD_BYTES // 2


def test_peaks_are_of_the_program_and_of_what_ray_calls_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE)
    try:
        assert driver.stdout is not None and driver.stdout.readline() == b"up\n"
        peaks = Peaks()
        peaks(driver.pid)
        assert peaks.driver_bytes > 0
        assert peaks.worker_bytes == {}  # no process of that name
        monkeypatch.setattr(scale, "_is_worker", lambda process: process.pid != os.getpid())
        deadline = 100
        while max(peaks.worker_bytes.values(), default=0) < HELD_BYTES and (deadline := deadline - 1):
            peaks(driver.pid)
        assert max(peaks.worker_bytes.values()) >= HELD_BYTES
    finally:
        for process in (*psutil.Process(driver.pid).children(), driver):
            process.kill()
        driver.wait()
    gone = Peaks()
    gone(driver.pid)
    assert (gone.driver_bytes, gone.worker_bytes) == (0, {})


@pytest.mark.parametrize(
    ("line", "is_worker"),
    [
        (["ray::EncodeWorker.run"], True),
        (["ray::IDLE"], True),
        (["ray::DashboardAgent"], False),
        (["/usr/bin/python", "-m", "isoformer"], False),
        ([], False),
    ],
)
def test_a_worker_is_known_by_its_name(
    monkeypatch: pytest.MonkeyPatch, line: list[str], is_worker: bool
) -> None:
    process = psutil.Process()
    monkeypatch.setattr(process, "cmdline", lambda: line)
    assert scale._is_worker(process) == is_worker


def test_what_is_reported() -> None:
    runs = {
        "times_1": [run(1.0)],
        "times_8": [run(8.0, 8, driver=101)],
        "one_node": [run(2.0)],
        "two_nodes": [run(2.1)],
    }
    result = scale._benchmark(EncoderChoice(name="esm2-8m", random_seed=0), 8, runs)
    assert result.ratios["driver_memory"] == 1.01
    assert result.raw == {"times_1": [1.0], "times_8": [8.0], "one_node": [2.0], "two_nodes": [2.1]}
    assert result.notes["sequences"]["times_8"] == 80
    assert result.notes["driver_mb"] == {"times_1": [100.0], "times_8": [101]}
    assert "reversed and turned" in result.notes["input"]
