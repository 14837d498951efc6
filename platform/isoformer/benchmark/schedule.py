"""`isoformer benchmark schedule`: hours, money and the driver's limits of runs that nobody can afford to try.

The real driver runs on a simulated cluster (`schedule_cluster.py`): the paper's transcripts on a few sizes of
GPU clusters, smooth, with stragglers, and with nodes lost as well; then 100 million sequences on 10,000
workers, where the driver itself is the question. What the driver's calls, planning and requests cost is
measured here; the simulation is held against real runs, one of which loses a worker. What a GPU does is
assumed, by published figures (`schedule_assumed.py`): no GPU was measured.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from isoformer.benchmark.engine_inputs import program_json
from isoformer.benchmark.rounds import Benchmark, machine, versions
from isoformer.benchmark.schedule_assumed import ASSUMED, costs_on_gpu, tokenise_seconds
from isoformer.benchmark.schedule_cluster import Conditions, RayCost
from isoformer.benchmark.schedule_real import Comparison, compare, measure_ray
from isoformer.benchmark.schedule_run import Outcome, simulate
from isoformer.benchmark.schedule_storage import Requests, count_requests, prepared_sample
from isoformer.benchmark.schedule_work import CODING, Input, made_plan, paper_config, totals
from isoformer.embeddings.config import encoder_passes
from isoformer.embeddings.store import ShardEntry
from isoformer.ray_session import RayConfig, ray_session

PAPER_TRANSCRIPTS: Final = 170_000
LARGE_SEQUENCES: Final = 100_000_000
LARGE_WORKERS: Final = 10_000
_PLANNED_PARTS: Final = (1000, 100)
"""Parts of the large input that are really planned."""
_NOWHERE: Final = "/nonexistent"


@dataclass(frozen=True)
class Scenario:
    """A run to simulate; `name` in words."""

    name: str
    input: Input
    workers: int
    conditions: Conditions
    tokenise_tasks: int | None = None


def benchmark_schedule(
    *,
    gpus: Sequence[int] = (1, 8, 64),
    dollars_per_gpu_hour: float = ASSUMED.dollars_per_gpu_hour,
    rounds: int = 3,
    large: bool = True,
    seed: int = 0,
) -> Benchmark:
    """Simulate all scenarios, and hold the simulation against `rounds` of real runs (0: Ray is not started).

    ClusterError where a real run fails.
    """
    with tempfile.TemporaryDirectory(prefix="isoformer-benchmark-") as name:
        folder = Path(name)
        ray_cost = _ray_cost(seed) if rounds else RayCost()
        compared = compare(folder, rounds, ray_cost) if rounds else []
        requests, entry = count_requests(prepared_sample(folder / "requests", shards=4))
        planning = _plannings(folder) if large else []
    conditions = Conditions(
        actors_per_node=ASSUMED.gpus_per_node,
        node_start_seconds=ASSUMED.node_start_seconds,
        process_start_seconds=ASSUMED.process_start_seconds,
        request_seconds=ASSUMED.request_seconds,
        publish_bytes_per_second=ASSUMED.publish_bytes_per_second,
        tokenise_seconds_per_token=tokenise_seconds(),
        ray_cost=ray_cost,
    )
    scenarios = paper_scenarios(gpus, conditions) + (large_scenarios(conditions) if large else [])
    shown = [
        _shown(scenario, _outcome(scenario, seed), requests, dollars_per_gpu_hour) for scenario in scenarios
    ]
    return _benchmark(shown, compared, planning, requests, entry, conditions, dollars_per_gpu_hour)


def paper_scenarios(gpus: Sequence[int], smooth: Conditions) -> list[Scenario]:
    """The paper's transcripts, in shards as `prepare` makes them and in smaller ones."""
    uneven = replace(smooth, shard_spread=ASSUMED.shard_spread, worker_spread=ASSUMED.worker_spread)
    spot = replace(uneven, node_losses_per_hour=ASSUMED.node_losses_per_hour)
    usual, small = Input(PAPER_TRANSCRIPTS), Input(PAPER_TRANSCRIPTS, 128)
    most = max(gpus)
    kinds = (("smooth", smooth), ("stragglers", uneven), ("stragglers and spot", spot))
    return [
        Scenario(f"{count} GPU, {told}", usual, count, replace(given, actors_per_node=min(count, 8)))
        for count in gpus
        for told, given in kinds
    ] + [
        Scenario(f"{most} GPU, smooth, shards of 128", small, most, smooth),
        Scenario(f"{most} GPU, smooth, two tokenise tasks", usual, most, smooth, 2),
    ]


def large_scenarios(smooth: Conditions) -> list[Scenario]:
    """A hundred million sequences; enough tokenise tasks, since the driver is the question."""
    transcripts = round(LARGE_SEQUENCES / (2 + CODING))
    return [
        Scenario(f"{workers:,} GPU, 100 million sequences", Input(transcripts), workers, smooth, workers)
        for workers in (LARGE_WORKERS // 10, LARGE_WORKERS)
    ]


def _outcome(scenario: Scenario, seed: int) -> tuple[Outcome, Mapping[str, Any]]:
    config = paper_config(actors=scenario.workers, gpus_per_actor=1, tokenise_tasks=scenario.tokenise_tasks)
    costs = costs_on_gpu(encoder_passes(config, _NOWHERE), ASSUMED)
    planned = made_plan(config, scenario.input, costs, seed=seed, root=_NOWHERE)
    held = {name: asdict(load) for name, load in totals(planned).items()}
    return simulate(config, planned, scenario.conditions, seed=seed), held


def _shown(
    scenario: Scenario, found: tuple[Outcome, Mapping[str, Any]], requests: Requests, dollars: float
) -> dict[str, Any]:
    """Figures of one scenario, rounded."""
    outcome, held = found
    is_spot = scenario.conditions.node_losses_per_hour > 0
    price = ASSUMED.spot_dollars_per_gpu_hour if is_spot else dollars
    gpu_hours = outcome.node_hours * scenario.conditions.actors_per_node
    asked = requests.of_a_run(scenario.input.shards, len(held))
    return {
        "scenario": scenario.name,
        "workers": outcome.workers,
        "shards": outcome.shards,
        "planned_hours": round(outcome.planned_seconds / outcome.workers / 3600, 4),
        "ideal_hours": round(outcome.ideal_seconds / 3600, 4),
        "work_hours": round(outcome.work_seconds / 3600, 4),
        "wall_hours": round(outcome.wall_seconds / 3600, 4),
        "over_ideal": round(outcome.over_ideal, 3),
        "dollars": round(gpu_hours * price, 2),
        "request_dollars": round(
            asked.get("PUT", 0) / 1000 * ASSUMED.dollars_per_1000_puts
            + (asked.get("GET", 0) + asked.get("HEAD", 0)) / 1000 * ASSUMED.dollars_per_1000_gets,
            2,
        ),
        "gigabytes": round(sum(load["output_bytes"] for load in held.values()) / 1e9, 1),
        "requests": asked,
        "puts_per_second": round(asked.get("PUT", 0) / outcome.work_seconds, 1),
        "nodes_lost": outcome.nodes_lost,
        "shards_repeated": outcome.shards_repeated,
        "driver_cpu_seconds": round(outcome.driver_cpu_seconds, 2),
        "driver_ray_seconds": round(outcome.ray_seconds, 2),
        "driver_share": round(outcome.driver_share, 3),
    }


def _ray_cost(seed: int) -> RayCost:
    config = paper_config(gpus_per_actor=1)
    costs = costs_on_gpu(encoder_passes(config, _NOWHERE), ASSUMED)
    work = made_plan(config, Input(1), costs, seed=seed, root=_NOWHERE).work[0]
    with ray_session(RayConfig()):
        return measure_ray(work)


def _plannings(folder: Path) -> list[dict[str, Any]]:
    """Each in a process of its own; the sample is one shard, of about a thousand sequences."""
    root = prepared_sample(folder / "sample")
    sequences = program_json(_planning(root, 1), folder / "planned_1")["sequences"]
    shards = [round(LARGE_SEQUENCES / sequences / part) for part in _PLANNED_PARTS]
    return [program_json(_planning(root, count), folder / f"planned_{count}") for count in shards]


def _planning(root: Path, shards: int) -> list[str]:
    return ["isoformer.benchmark.schedule_storage", str(root), str(shards)]


def _benchmark(
    shown: list[dict[str, Any]],
    compared: Sequence[Comparison],
    planning: list[dict[str, Any]],
    requests: Requests,
    entry: ShardEntry,
    conditions: Conditions,
    dollars: float,
) -> Benchmark:
    raw = {
        name: [round(one.real_seconds, 2) for one in compared if one.is_killed is killed]
        for name, killed in (("left_alone", False), ("worker_killed", True))
    }
    simulated = {
        name: [round(one.simulated_seconds, 2) for one in compared if one.is_killed is killed]
        for name, killed in (("left_alone", False), ("worker_killed", True))
    }
    return Benchmark(
        "schedule",
        settings={"transcripts": PAPER_TRANSCRIPTS, "dollars_per_gpu_hour": dollars},
        rounds=len(compared) // 2,
        raw=raw,
        ratios={
            "largest_error": round(max((abs(one.error) for one in compared), default=0.0), 3),
            **{one["scenario"]: one["over_ideal"] for one in shown},
        },
        notes={
            "gpu": "assumed, not measured",
            "assumed": asdict(ASSUMED),
            "conditions": asdict(conditions),
            "scenarios": shown,
            "simulated_seconds": simulated,
            "failures": [one.failures for one in compared],
            "planning": planning,
            "requests_a_shard": asdict(requests),
            "manifest_bytes_a_shard": len(json.dumps(entry, indent=1, sort_keys=True)),
        },
        hardware=machine("cpu", 1),
        versions=versions("torch", "ray"),
    )
