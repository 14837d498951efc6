"""`isoformer benchmark sweep`: finished trials a minute against plain Ray Tune and plain Optuna.

The data are the demo's (345 measured genes, tiny pre-trained encoders at bins:16), prepared and embedded
beforehand; the model is the default one. Rates are between a contestant's first and its last ended trial, so
that starting processes is not in them; `…_with_start` has it in. A trial's overhead is the time of its slot
(from the end of the trial before it there) less its own training. `memory_growth` is of the resident memory
of the driver and all trial workers, over a sweep of 200 trials, its last tenth against its second one.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Final

import numpy as np
import psutil

from isoformer.benchmark.rounds import Benchmark, in_turns, machine, median_ratio, versions
from isoformer.benchmark.sweep_contestants import Job, run_optuna, run_ours, run_ray_tune
from isoformer.config import build
from isoformer.console import Output
from isoformer.ray_session import RayConfig, ray_session
from isoformer.settings import Settings
from isoformer.training.config import TrainConfig

RESOLUTION: Final = "bins:16"
ROUND_SECONDS: Final = 480.0
"""Of all rounds: more than other benchmarks take, since plain Ray Tune starts a process a trial."""


@dataclass(frozen=True)
class Pace:
    """Trials a minute once the first has ended, and from the start on; our own overhead a trial."""

    per_minute: float
    with_start: float
    overhead_seconds: float | None = None


def benchmark_sweep(
    *, rounds: int = 3, trials: int = 16, ray_tune_trials: int = 4, epochs: int = 10, memory_trials: int = 200
) -> Benchmark:
    """Time the three in `rounds` rounds; then a sweep of `memory_trials` for its memory (0: leave it out)."""
    at_once = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="isoformer-benchmark-") as root, ray_session(RayConfig()):
        config = _prepared(root, epochs)
        job = Job(root, config, _rates(trials), at_once)
        few = Job(root, config, _rates(ray_tune_trials), at_once)
        threads = _better_threads(Job(root, config, _rates(3), 1), at_once)
        numbers = iter(range(1_000_000))
        paces = in_turns(
            {
                "ours": lambda: _our_pace(job, f"round-{next(numbers)}"),
                "ray_tune": lambda: _pace(lambda: run_ray_tune(few), at_once),
                "optuna": lambda: _pace(lambda: run_optuna(job, threads), 1),
            },
            rounds,
            most_seconds=ROUND_SECONDS,
        )
        growth = None
        if memory_trials:
            tiny = Job(root, config.edited(epochs=2), _rates(memory_trials), at_once)
            growth = _memory_growth(tiny)
    overheads = [pace.overhead_seconds for pace in paces["ours"] if pace.overhead_seconds is not None]
    return Benchmark(
        "sweep",
        settings={
            "trials": trials,
            "trials of plain Ray Tune": ray_tune_trials,
            "epochs a trial": epochs,
            "trials at once": at_once,
            "threads of plain Optuna": threads,
            "trials for memory": memory_trials,
        },
        rounds=len(paces["ours"]),
        raw={
            **{f"{name}: trials per minute": [p.per_minute for p in of] for name, of in paces.items()},
            **{f"{name}: with start": [p.with_start for p in of] for name, of in paces.items()},
            "ours: overhead seconds a trial": overheads,
            "ours: memory growth": [] if growth is None else [growth],
        },
        ratios={
            **ratios_of(paces["ours"], paces["ray_tune"], paces["optuna"]),
            "overhead_seconds": round(median(overheads), 4),
            **({} if growth is None else {"memory_growth": round(growth, 4)}),
        },
        notes={"ours": "with MLflow tracking into SQLite, which the others do not have"},
        hardware=machine("cpu", at_once),
        versions=versions("ray", "optuna", "torch", "mlflow", "numpy"),
    )


def ratios_of(ours: Sequence[Pace], ray_tune: Sequence[Pace], optuna: Sequence[Pace]) -> dict[str, float]:
    """Medians over rounds of trials a minute."""
    found = {}
    for name, others in (("ray_tune", ray_tune), ("optuna", optuna)):
        pairs = [(p.per_minute for p in ours), (p.per_minute for p in others)]
        found[f"trials_over_{name}"] = median_ratio(*map(list, pairs))
        started = [(p.with_start for p in ours), (p.with_start for p in others)]
        found[f"trials_over_{name}_with_start"] = median_ratio(*map(list, started))
    return {name: round(value, 4) for name, value in found.items()}


def slot_overheads(ends: Sequence[float], training: Sequence[float], at_once: int) -> list[float]:
    """Seconds of each trial's slot that were not its training, both in the order of the ends.

    A slot is free when the trial so many ends before has ended; the first trials, which start the workers,
    are left out.
    """
    begins = {place: ends[place - at_once] for place in range(at_once, len(ends))}
    return [ends[place] - begin - training[place] for place, begin in begins.items()]


def _pace(run: Callable[[], Sequence[float]], at_once: int) -> Pace:
    started = time.time()
    ends = run()
    return Pace(_steady(ends), 60 * len(ends) / (ends[-1] - started))


def _our_pace(job: Job, study: str) -> Pace:
    started = time.time()
    ends, result = run_ours(job, study)
    in_order = sorted(result.trials, key=lambda row: row.ended or 0.0)
    training = [row.training_seconds or 0.0 for row in in_order]
    overheads = slot_overheads(ends, training, job.at_once)
    return Pace(_steady(ends), 60 * len(ends) / (ends[-1] - started), median(overheads))


def _steady(ends: Sequence[float]) -> float:
    return 60 * (len(ends) - 1) / (ends[-1] - ends[0])


def _better_threads(job: Job, most: int) -> int:
    """Of one and all cores, what makes plain Optuna faster here."""
    return max((1, most), key=lambda threads: _steady(run_optuna(job, threads)))


def _memory_growth(job: Job) -> float:
    """Memory at the end of a long sweep over that near its beginning, less one."""
    with _MemoryWatch() as watch:
        ends, result = run_ours(job, "memory", tracking=False)
    assert len(result.trials) == len(job.rates)
    tenth = len(ends) // 10
    early = watch.mean_between(ends[tenth], ends[2 * tenth])
    late = watch.mean_between(ends[-tenth - 1], ends[-1])
    return late / early - 1


class _MemoryWatch:
    """Resident memory of this process and the trial workers below it, a few times a second."""

    def __enter__(self) -> _MemoryWatch:
        self._samples: list[tuple[float, int]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def mean_between(self, begin: float, end: float) -> float:
        return mean(held for at, held in self._samples if begin <= at <= end)

    def _watch(self) -> None:
        own = psutil.Process()
        while not self._over.wait(0.3):
            held = own.memory_info().rss
            for child in own.children(recursive=True):
                try:
                    if "ImplicitFunc" in " ".join(child.cmdline()):
                        held += child.memory_full_info().uss
                except psutil.Error:  # it has just ended
                    continue
            self._samples.append((time.time(), held))


def _prepared(root: str, epochs: int) -> TrainConfig:
    """The demo's data under `root`, and the training configuration on it."""
    from isoformer import stages
    from isoformer.demo import demo_settings

    made = demo_settings(root).model_dump(mode="json")
    encoders = made["embed"]["encoders"]
    kept = [e for e in encoders if e["resolution"] == RESOLUTION and e["random_seed"] is None]
    settings = build(Settings, {**made, "embed": {**made["embed"], "encoders": kept}})
    quiet = Output(as_json=True)  # says nothing of itself
    stages.run_prepare(settings, quiet)
    stages.run_embed(settings, quiet)
    return settings.train_config().edited(epochs=epochs, patience=epochs)


def _rates(count: int) -> tuple[float, ...]:
    """Different learning rates that all train well, the lowest and the highest always the same."""
    return tuple(float(rate) for rate in np.geomspace(3e-4, 3e-3, count))
