"""`isoformer benchmark schedule`: the real driver on a simulated cluster keeps its promises."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoformer.benchmark import schedule_work
from isoformer.benchmark.schedule_cluster import Conditions, SimulatedCluster
from isoformer.benchmark.schedule_run import Outcome, simulate
from isoformer.benchmark.schedule_storage import CountingStorage, RepeatingStorage, count_requests
from isoformer.benchmark.schedule_work import Input, made_plan
from isoformer.embeddings.config import EmbedConfig, EncoderJob, encoder_passes
from isoformer.embeddings.messages import ShardSummary, WorkerSettings
from isoformer.embeddings.plan import Plan, plan_on
from isoformer.embeddings.pool import Pool
from isoformer.embeddings.profile import EncoderCost
from isoformer.errors import ConfigError
from isoformer.storage import open_storage
from tiny_dataset import write_dataset

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ROOT / "platform/isoformer/benchmark/measured"
SMOOTH = Conditions(actors_per_node=4, node_start_seconds=60, process_start_seconds=10)
ROUGH = replace(SMOOTH, shard_spread=0.5, worker_spread=0.5, node_losses_per_hour=20.0, request_seconds=0.1)
COST = EncoderCost(5.0, 0.0, 0.0, 1e-3, 0.0, "made up", 0)


@pytest.fixture(autouse=True)
def made_up_lengths(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The shipped sample is not prepared anew for lengths that nothing here depends on."""
    lengths = np.random.default_rng(0).lognormal(6.0, 0.8, 300).astype(int) + 30
    made = (["M" * length for length in lengths], ["A" * 3 * length for length in lengths])
    monkeypatch.setattr(schedule_work, "sample", lambda: made)
    schedule_work._letters.cache_clear()
    yield
    schedule_work._letters.cache_clear()


def config(actors: int = 12, **given: int) -> EmbedConfig:
    jobs = (EncoderJob(name="composition-rna"), EncoderJob(name="composition-protein"))
    return EmbedConfig(encoders=jobs, actors=actors, gpus_per_actor=1, **given)


def planned(actors: int = 12, transcripts: int = 20_000) -> Plan:
    given = config(actors)
    return made_plan(given, Input(transcripts, 256), [COST, COST], seed=0, root="/nonexistent")


def summaries(of: Plan, cluster: SimulatedCluster, actors: int = 12) -> list[ShardSummary]:
    settings = WorkerSettings(of.source.storage, of.passes, "cuda", "f16", config(actors).budget(), 1)
    events = Pool(config(actors), of, settings, cluster).run()
    return [event for event in events if isinstance(event, ShardSummary)]


def run(conditions: Conditions, *, seed: int = 0, actors: int = 12) -> Outcome:
    return simulate(config(actors), planned(actors), conditions, seed=seed)


def test_every_shard_is_done_once_whatever_is_lost() -> None:
    lost = 0
    for seed in range(4):
        of = planned()
        cluster = SimulatedCluster(of, ROUGH, seed)
        names = [(one.encoder, one.shard) for one in summaries(of, cluster)]
        assert sorted(names) == sorted(item.name for item in of.work)
        lost += cluster.counted["node_lost"]
    assert lost > 3


def test_without_losses_no_schedule_beats_the_ideal_and_none_is_worse_than_list_scheduling() -> None:
    for actors in (1, 5, 16):
        conditions = replace(SMOOTH, shard_spread=0.5)
        free = replace(COST, load_seconds=0.0)
        of = made_plan(config(actors), Input(20_000, 256), [free, free], seed=0, root="/nonexistent")
        cluster = SimulatedCluster(of, conditions, 1)
        done = summaries(of, cluster, actors)
        taken = [one.encode_seconds for one in done]
        makespan = cluster.now() - min(one.started_at for one in done)
        best = max(sum(taken) / actors, max(taken))
        # Graham 1966; a percent for the driver's calls, which take their time as well
        assert sum(taken) / actors <= makespan <= 1.01 * (2 - 1 / actors) * best


def test_the_same_seed_gives_the_same_run_and_another_another() -> None:
    first, again, other = (run(ROUGH, seed=seed) for seed in (3, 3, 4))
    timeless = {"driver_cpu_seconds": 0.0}
    assert replace(first, **timeless) == replace(again, **timeless)
    assert other.work_seconds != first.work_seconds


def test_a_lost_node_costs_time_and_its_shards_are_done_again() -> None:
    smooth, rough = run(SMOOTH), run(replace(SMOOTH, node_losses_per_hour=20.0))
    assert rough.nodes_lost > 0 and rough.failures["node_lost"] >= rough.nodes_lost
    assert rough.shards_repeated > 0
    assert rough.work_seconds > smooth.work_seconds


def test_a_killed_worker_is_replaced_and_named() -> None:
    left_alone, killed = run(SMOOTH), run(replace(SMOOTH, kill_after_shards=20))
    assert killed.failures == {"worker_lost": 1}
    assert (left_alone.failures, left_alone.shards_repeated) == ({}, 0)
    assert killed.work_seconds >= left_alone.work_seconds


def test_a_stray_worker_slows_its_shards_and_the_driver_notices() -> None:
    even, uneven = run(SMOOTH), run(replace(SMOOTH, worker_spread=1.0))
    assert uneven.over_ideal > even.over_ideal


def test_the_driver_is_busier_where_there_are_more_workers() -> None:
    few, many = run(SMOOTH, actors=4), run(SMOOTH, actors=40)
    assert 0 < few.driver_share < many.driver_share


def test_two_tokenise_tasks_do_not_feed_many_workers_and_the_default_does() -> None:
    conditions = replace(SMOOTH, tokenise_seconds_per_token=(1e-4, 1e-4))  # a tenth of what encoding takes
    starved, fed = (
        simulate(given, planned(40), conditions, seed=0)
        for given in (config(40, tokenise_tasks=2), config(40))
    )
    assert config(40).tokenise_at_once() == 10
    assert starved.over_ideal > 1.3 * fed.over_ideal


def test_a_plan_without_a_cost_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no cost; profile it"):
        SimulatedCluster(replace(planned(), costs=[COST, None]), SMOOTH, 0)


def test_work_is_made_like_the_planner_makes_it() -> None:
    of = planned()
    assert len(of.work) == 2 * 79  # 20,000 transcripts by 256, for each encoder
    by_encoder = [[item for item in of.work if item.encoder == index] for index in (0, 1)]
    assert of.work == [*by_encoder[0], *by_encoder[1]] or of.work == [*by_encoder[1], *by_encoder[0]]
    for mine in by_encoder:
        tokens = [item.load.tokens for item in mine]
        assert tokens == sorted(tokens, reverse=True)
    rna, protein = (sum(item.load.sequences for item in mine) for mine in by_encoder)
    assert rna == pytest.approx(20_000, rel=0.02) and protein == pytest.approx(20_000 * 9 / 17, rel=0.02)


def test_requests_are_counted_where_they_are_made(tmp_path: Path) -> None:
    write_dataset(str(tmp_path), shards=2)
    requests, entry = count_requests(tmp_path)
    assert requests.encoding["PUT"] == 1.0  # one object a shard, in one request
    assert requests.tokenising["GET"] >= 1 and "PUT" not in requests.tokenising
    assert requests.of_a_run(10, 3)["PUT"] == 30
    assert entry["sequences"] > 0 and entry["name"].startswith("shard-")


def test_a_repeated_shard_is_planned_as_often_as_asked(tmp_path: Path) -> None:
    write_dataset(str(tmp_path), shards=1)
    given = EmbedConfig(encoders=(EncoderJob(name="composition-rna"),))
    once = plan_on(CountingStorage(tmp_path), given, str(tmp_path))
    storage = RepeatingStorage(tmp_path, 7)
    often = plan_on(storage, given, str(tmp_path))
    assert [len(once.work), len(often.work), often.shards] == [1, 7, 7]
    assert often.encoders[0].sequences == 7 * once.encoders[0].sequences
    assert storage.requests["HEAD"] >= 7
    assert encoder_passes(given, open_storage(str(tmp_path)).uri) == often.passes


def scenario_row(one: dict[str, Any]) -> str:
    """As the page shows it."""
    lost = f"{one['nodes_lost']} / {one['shards_repeated']}"
    return (
        f"| {one['scenario']} | {one['shards']:,} | {one['planned_hours']:.3f} | {one['work_hours']:.3f} "
        f"| {one['wall_hours']:.3f} | {one['over_ideal']:.2f} | {lost} | {one['dollars']:.2f} |"
    )


def large_row(one: dict[str, Any]) -> str:
    return (
        f"| {one['workers']:,} | {one['shards']:,} | {one['planned_hours'] * 3600:.0f} "
        f"| {one['work_hours'] * 3600:.0f} | {one['over_ideal']:.2f} | {one['driver_cpu_seconds']:.0f} "
        f"| {one['driver_ray_seconds']:.0f} | {one['driver_share']:.2f} | {one['puts_per_second']:,.0f} |"
    )


def planning_row(one: dict[str, Any]) -> str:
    return (
        f"| {one['shards']:,} | {one['sequences']:,} | {one['cpu_seconds']:.1f} "
        f"| {one['bytes_held'] / 1e6:.0f} | {one['peak_bytes'] / 1e6:.0f} |"
    )


def validation_row(name: str, found: dict[str, list[float]]) -> str:
    pairs = list(zip(found["real"], found["simulated"], strict=True))
    errors = ", ".join(f"{100 * (simulated / real - 1):+.0f}%" for real, simulated in pairs)
    real, simulated = (", ".join(f"{one:.1f}" for one in found[kind]) for kind in ("real", "simulated"))
    return f"| {name.replace('_', ' ')} | {real} | {simulated} | {errors} |"


def page_rows() -> list[str]:
    usual, large = (
        json.loads((MEASURED / name).read_text()) for name in ("schedule.json", "schedule.large.json")
    )
    rows = [scenario_row(one) for one in usual["notes"]["scenarios"]]
    rows += [large_row(one) for one in large["notes"]["scenarios"] if "million" in one["scenario"]]
    planned = json.loads((MEASURED / "schedule.planning.json").read_text())
    rows += [planning_row(one) for one in (*large["notes"]["planning"], planned)]
    real = json.loads((MEASURED / "schedule.validation.json").read_text())
    rows += [validation_row(name, real[name]) for name in ("left_alone", "worker_killed")]
    return rows


def test_the_page_says_what_was_measured() -> None:
    page = (ROOT / "platform/docs/scale.md").read_text()
    rows = page_rows()
    assert len(rows) >= 15
    assert [row for row in rows if row not in page] == []
