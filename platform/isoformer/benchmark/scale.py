"""`isoformer benchmark scale`: what grows with the input, and what two nodes bring over one.

    times_1, times_8      the engine from cold on so many times the proteins, in shards of one size
    one_node, two_nodes   two actors of one thread each, on one local Ray node or one on each of two

Memory is the high-water mark of resident bytes, shared pages included, of the driver and of the largest
worker. What is more than the shipped sample is made of its proteins, reversed and turned.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil

from isoformer.benchmark.engine_inputs import (
    engine_config,
    prepare_proteins,
    program_json,
    require_esm2,
    sample_proteins,
    variants,
)
from isoformer.benchmark.rounds import Benchmark, in_turns, machine, median_ratio, versions
from isoformer.encoders.registry import EncoderChoice, get_spec

RESOLUTION: Final = "tokens"
"""The most that an engine can be asked to hold and write."""
_SEED: Final = 0
_SHARDS: Final = 6
"""Of the single input; more input is more shards of the same size."""
_NODES_TIMES: Final = 2
_STEADY_SECONDS: Final = 6.0
_ASSUMED_FLOPS_PER_SECOND: Final = 90e9
"""Of one core: only to choose how many proteins there are."""
_MOST_SECONDS: Final = 540.0
"""Of all rounds: little is done before them."""
_CPUS_PER_ACTOR: Final = 2
"""Logical ones, with one more a node for tokenising: two actors do not fit on one of two nodes."""


@dataclass
class Peaks:
    """High-water marks of resident memory of a program and its descendants, by process; told its pid."""

    driver_bytes: int = 0
    worker_bytes: dict[int, int] = field(default_factory=dict)

    def __call__(self, pid: int) -> None:
        try:
            driver = psutil.Process(pid)
            self.driver_bytes = max(self.driver_bytes, peak_bytes(driver))
            family = driver.children(recursive=True)
        except psutil.Error:
            return
        for process in family:
            try:
                if _is_worker(process):
                    known = self.worker_bytes.get(process.pid, 0)
                    self.worker_bytes[process.pid] = max(known, peak_bytes(process))
            except psutil.Error:
                continue


@dataclass(frozen=True)
class Run:
    """One embedding run: its steady seconds and what it held."""

    seconds: float
    sequences: int
    tokens: int
    driver_mb: float = 0.0
    worker_mb: float = 0.0


def benchmark_scale(
    encoder: str = "esm2-8m", *, times: int = 8, rounds: int = 3, tokens: int | None = None
) -> Benchmark:
    """Run the engine on about `tokens` tokens (null: about six seconds' worth) and on `times` as many, and
    on two layouts of nodes, in `rounds` rounds.

    ConfigError for an encoder that is no ESM-2; ClusterError where a run fails.
    """
    require_esm2(encoder, "scale")
    choice = EncoderChoice(name=encoder, random_seed=_SEED)
    proteins = sample_proteins(tokens or _enough_tokens(choice), least=2 * _SHARDS)
    with tempfile.TemporaryDirectory(prefix="isoformer-benchmark-") as name:
        contestants = _contestants(choice, proteins, times, Path(name))
        runs = in_turns(contestants, rounds, most_seconds=_MOST_SECONDS)
    return _benchmark(choice, times, runs)


def ratios_of(
    single: Sequence[Run], larger: Sequence[Run], nodes: Mapping[str, Sequence[Run]]
) -> dict[str, float]:
    """Larger over single input, and two nodes' rate over one's: medians over rounds."""
    found = {
        "driver_memory": median_ratio([run.driver_mb for run in larger], [run.driver_mb for run in single]),
        "worker_memory": median_ratio([run.worker_mb for run in larger], [run.worker_mb for run in single]),
        "cost_per_sequence": median_ratio(_costs(larger), _costs(single)),
        "two_nodes_over_one": median_ratio(_rates(nodes["two_nodes"]), _rates(nodes["one_node"])),
    }
    return {name: round(value, 4) for name, value in found.items()}


def peak_bytes(process: psutil.Process) -> int:
    """The most that was ever resident; what is now, where the system keeps no such mark."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        return int(process.memory_info().rss)
    marks = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(marks[0]) << 10 if marks else 0


def _contestants(
    choice: EncoderChoice, proteins: list[str], times: int, folder: Path
) -> dict[str, Callable[[], Run]]:
    single, larger, nodes = (
        _prepared(proteins, count, folder / f"input_{number}")
        for number, count in enumerate((1, times, _NODES_TIMES))
    )
    config = engine_config(choice, RESOLUTION, folder / "engine.yaml")
    on_nodes = engine_config(
        choice,
        RESOLUTION,
        folder / "nodes.yaml",
        actors=2,
        threads_per_actor=1,
        cpus_per_actor=_CPUS_PER_ACTOR,
    )
    each = _CPUS_PER_ACTOR + 1
    return {
        "times_1": partial(_engine, single, config, folder / "times_1"),
        f"times_{times}": partial(_engine, larger, config, folder / "times_more"),
        "one_node": partial(_on_nodes, nodes, on_nodes, folder / "one_node", 1, 2 * each),
        "two_nodes": partial(_on_nodes, nodes, on_nodes, folder / "two_nodes", 2, each),
    }


def _prepared(proteins: list[str], times: int, folder: Path) -> Path:
    folder.mkdir()
    return prepare_proteins(variants(proteins, times), folder, shards=_SHARDS * times)


def _engine(prepared: Path, config: Path, place: Path) -> Run:
    """A cold run on a copy of a prepared root, watched."""
    peaks = Peaks()
    _fresh_copy(prepared, place)
    command = ["isoformer", "embed", "--config", str(config), "--set", f"root={place}", "--json"]
    report = program_json(command, place.with_suffix(".said"), watch=peaks)
    return _run(report, peaks)


def _on_nodes(prepared: Path, config: Path, place: Path, nodes: int, cpus: int) -> Run:
    _fresh_copy(prepared, place)
    command = ["isoformer.benchmark.local_nodes", str(place), str(config), str(nodes), str(cpus)]
    return _run(program_json(command, place.with_suffix(".said")), Peaks())


def _fresh_copy(prepared: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(prepared, place)


def _run(report: Mapping[str, Any], peaks: Peaks) -> Run:
    return Run(
        seconds=report["actual_seconds"],
        sequences=report["sequences"],
        tokens=report["tokens"],
        driver_mb=peaks.driver_bytes / 1e6,
        worker_mb=max(peaks.worker_bytes.values(), default=0) / 1e6,
    )


def _is_worker(process: psutil.Process) -> bool:
    """Ray's worker processes go by the name of what they do; its agents are no workers."""
    name = (process.cmdline() or [""])[0]
    return name.startswith("ray::") and not name.endswith("Agent")


def _enough_tokens(choice: EncoderChoice) -> int:
    flops = _STEADY_SECONDS * _ASSUMED_FLOPS_PER_SECOND * len(os.sched_getaffinity(0))
    return math.ceil(flops / get_spec(choice).flops(1))


def _costs(runs: Sequence[Run]) -> list[float]:
    return [run.seconds / run.sequences for run in runs]


def _rates(runs: Sequence[Run]) -> list[float]:
    return [run.tokens / run.seconds for run in runs]


def _benchmark(choice: EncoderChoice, times: int, runs: Mapping[str, list[Run]]) -> Benchmark:
    single, larger = runs["times_1"], runs[f"times_{times}"]
    threads = len(os.sched_getaffinity(0))
    return Benchmark(
        "scale",
        settings={
            "encoder": choice.name,
            "weights": "random",
            "resolution": RESOLUTION,
            "times": times,
            "shards": _SHARDS,
            "threads": threads,
            "threads_of_the_nodes_runs": 2,
        },
        rounds=len(single),
        raw={name: [round(run.seconds, 4) for run in found] for name, found in runs.items()},
        ratios=ratios_of(single, larger, runs),
        notes={
            "input": "proteins of the shipped sample; what is more is made of them, reversed and turned",
            "sequences": {name: found[0].sequences for name, found in runs.items()},
            "tokens": {name: found[0].tokens for name, found in runs.items()},
            "driver_mb": {
                name: [round(run.driver_mb, 1) for run in runs[name]]
                for name in ("times_1", f"times_{times}")
            },
            "worker_mb": {
                name: [round(run.worker_mb, 1) for run in runs[name]]
                for name in ("times_1", f"times_{times}")
            },
        },
        hardware=machine("cpu", threads),
        versions=versions("torch", "ray"),
    )
