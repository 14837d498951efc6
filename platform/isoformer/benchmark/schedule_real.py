"""What the simulation is held against: real calls of Ray, and real small runs, one of which loses a worker.

`python -m … ROOT CONFIG KILL_AFTER` embeds under ROOT and kills a worker once so many shards are done (0:
none); prints the report.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil

from isoformer.benchmark.engine_inputs import engine_config, prepare_proteins, program_json, sample_proteins
from isoformer.benchmark.schedule_cluster import Conditions, RayCost
from isoformer.benchmark.schedule_run import Outcome, simulate
from isoformer.embeddings.pipeline import EmbedProgress, embed
from isoformer.embeddings.plan import ShardWork, plan
from isoformer.embeddings.profile import read_profile
from isoformer.encoders.registry import EncoderChoice
from isoformer.ray_session import ray_session
from isoformer.settings import load_settings
from isoformer.storage import open_storage

SHARDS: Final = 12
KILL_AFTER: Final = 4
"""Shards: about a third of the way."""
_TOKENS: Final = 120_000
_PENDING: Final = (100, 1000, 4000)
_REPEATS: Final = 30


@dataclass(frozen=True)
class Comparison:
    """A real run beside the simulated one: seconds from the first pack to the last shard."""

    is_killed: bool
    real_seconds: float
    simulated_seconds: float
    failures: dict[str, int]

    @property
    def error(self) -> float:
        """Of the simulation, relative to the real run."""
        return self.simulated_seconds / self.real_seconds - 1


def compare(folder: Path, rounds: int, ray_cost: RayCost) -> list[Comparison]:
    """In turns a run that is left alone and one whose worker is killed. The simulation of each is told the
    profile and the start-up of the run left alone before it, so that both had the same machine; one more
    comes first.
    """
    choice = EncoderChoice(name="esm2-8m", random_seed=0)
    config = engine_config(
        choice, "bins:16", folder / "engine.yaml", actors=2, threads_per_actor=1, cpus_per_actor=1
    )
    prepared = prepare_proteins(sample_proteins(_TOKENS, least=4 * SHARDS), folder, shards=SHARDS)
    calibrated, first = folder / "calibrated", folder / "first"
    _run(prepared, config, first, 0)
    shutil.copytree(prepared, calibrated)
    shutil.copy(first / "profile.json", calibrated)
    found = []
    for number in range(rounds):
        for kill_after in (0, KILL_AFTER):
            expected = _predicted(calibrated, config, kill_after, ray_cost)
            place = folder / f"run_{number}_{kill_after}"
            report = _run(prepared, config, place, kill_after)
            seconds = report["actual_seconds"]
            found.append(Comparison(kill_after > 0, seconds, expected.work_seconds, report["failures"]))
            if not kill_after:
                shutil.copy(place / "profile.json", calibrated)
    return found


def measure_ray(work: ShardWork) -> RayCost:
    """What the driver's calls cost here: on a worker with so many calls before it, so that none of them ends.

    `work` goes along with every call, as at a real one. Ray must be connected.
    """
    import ray

    remote: Any = ray.remote(num_cpus=0)(_Busy)
    free, busy = remote.remote(), remote.remote()
    ready = [free.answer.remote(work) for _ in range(_REPEATS)]
    ray.wait(ready, num_returns=len(ready))
    get = median(_seconds(lambda ref=ref: ray.get(ref)) for ref in ready)  # type: ignore[misc]
    held = [busy.hold.remote()]
    calls, waits = [], {}
    for count in _PENDING:
        while len(held) < count:
            calls.append(_seconds(lambda: held.append(busy.answer.remote(work))))
        waits[count] = median(
            _seconds(lambda: ray.wait(held, num_returns=1, timeout=0, fetch_local=False))
            for _ in range(_REPEATS)
        )
    for actor in (free, busy):
        ray.kill(actor)
    few, many = _PENDING[0], _PENDING[-1]
    each = (waits[many] - waits[few]) / (many - few)
    return RayCost(median(calls), get, max(0.0, waits[few] - few * each), each)


class _Busy:
    def answer(self, work: ShardWork) -> None:
        """At once, unless something is before it."""

    def hold(self) -> None:
        time.sleep(3600)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _run(prepared: Path, config: Path, place: Path, kill_after: int) -> Mapping[str, Any]:
    shutil.copytree(prepared, place)
    command = ["isoformer.benchmark.schedule_real", str(place), str(config), str(kill_after)]
    return program_json(command, place.with_suffix(".said"))


def _predicted(root: Path, config: Path, kill_after: int, ray_cost: RayCost) -> Outcome:
    """By the real plan of the same root, and the start-up in its profile."""
    embed_config = load_settings(str(config)).embed
    startup = read_profile(open_storage(str(root))).startup_seconds
    assert startup is not None, "the run before wrote it"
    conditions = Conditions(
        actors_per_node=2,
        process_start_seconds=startup,
        kill_after_shards=kill_after or None,
        ray_cost=ray_cost,
    )
    return simulate(embed_config, plan(embed_config, str(root)), conditions, seed=0)


def main(root: str, config: str, kill_after: int) -> None:
    """A run in a Ray of its own."""
    settings = load_settings(config)
    killed: list[int] = []

    def kill_one(progress: EmbedProgress) -> None:
        if not kill_after or killed or progress.shards_done < kill_after:
            return
        workers = [each for each in psutil.Process().children(recursive=True) if _is_worker(each)]
        killed.append(workers[0].pid)
        os.kill(killed[0], signal.SIGKILL)

    with ray_session(settings.ray):
        print(json.dumps(embed(settings.embed, root, progress=kill_one).to_json()))


def _is_worker(process: psutil.Process) -> bool:
    try:
        return (process.cmdline() or [""])[0].startswith("ray::EncodeWorker")
    except psutil.Error:
        return False


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
