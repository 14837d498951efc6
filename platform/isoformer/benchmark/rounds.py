"""Interleaved timing: every contestant runs once a round, so that a noisy machine is unfair to none of them.

A ratio is the median over rounds of the ratio within each round.
"""

from __future__ import annotations

import os
import platform as host
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from statistics import median
from typing import Any, Final, TypeVar

from isoformer.embeddings.profile import hardware

T = TypeVar("T")
MOST_SECONDS: Final = 400.0
"""Of all rounds together: with what is done before them, a benchmark ends within ten minutes."""


@dataclass(frozen=True)
class Benchmark:
    """What `isoformer benchmark` prints. `raw`: every timing, in seconds, in the order of the rounds."""

    what: str
    settings: dict[str, Any]
    rounds: int
    raw: dict[str, list[float]]
    ratios: dict[str, float]
    notes: dict[str, Any] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def interleaved(
    contestants: Mapping[str, Callable[[], object]], rounds: int, *, finish: Callable[[], object]
) -> dict[str, list[float]]:
    """Seconds of each contestant, round by round, in turning order. The caller has warmed them up.

    `finish` waits for what a device has still to do, which belongs to the time. Rounds are those of
    `in_turns`.
    """

    def timed(run: Callable[[], object]) -> float:
        started = time.perf_counter()
        run()
        finish()
        return time.perf_counter() - started

    finish()
    return in_turns({name: partial(timed, run) for name, run in contestants.items()}, rounds)


def in_turns(
    contestants: Mapping[str, Callable[[], T]], rounds: int, *, most_seconds: float | None = None
) -> dict[str, list[T]]:
    """What each contestant returned, round by round, in turning order.

    No round is begun that would end after `most_seconds` (null: `MOST_SECONDS`), so there may be fewer than
    asked for, but one at least.
    """
    begun = time.perf_counter()
    most_seconds = MOST_SECONDS if most_seconds is None else most_seconds
    results: dict[str, list[T]] = {name: [] for name in contestants}
    for number in range(rounds):
        spent = time.perf_counter() - begun
        if number and spent * (number + 1) / number > most_seconds:
            break
        names = list(contestants)
        for name in names if number % 2 == 0 else reversed(names):
            results[name].append(contestants[name]())
    return results


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median over rounds of numerator / denominator."""
    return median(above / below for above, below in zip(numerator, denominator, strict=True))


def machine(device: str, threads: int) -> dict[str, Any]:
    """What the figures were taken on."""
    import torch

    return {
        "device": hardware(device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "load_average_1min": round(os.getloadavg()[0], 2),
        "system": host.platform(),
    }


def versions(*packages: str) -> dict[str, str]:
    """The installed versions, Python's included."""
    return {"python": host.python_version()} | {name: version(name) for name in packages}
