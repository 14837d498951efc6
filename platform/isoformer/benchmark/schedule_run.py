"""One simulated run: the real driver (`embeddings.pool.Pool`) over a plan, on a simulated cluster."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from isoformer.benchmark.schedule_cluster import Conditions, SimulatedCluster
from isoformer.embeddings.config import EmbedConfig
from isoformer.embeddings.messages import ShardSummary, WorkerSettings
from isoformer.embeddings.plan import Plan
from isoformer.embeddings.pool import Pool

_SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Outcome:
    """What came of a simulated run.

    `wall_seconds`: from nothing, start of nodes and processes included; `work_seconds`: from the first pack
    to the last shard; `planned_seconds`: of all shards as planned; `needed_seconds`: as they really went,
    each once. `ideal_seconds`: these, divided by the workers.
    `node_hours`: from the start to the end, of every node that there was. `driver_cpu_seconds`: measured, of
    this processor, in the driver's own code; `ray_seconds`: modelled, in its calls of Ray.
    """

    workers: int
    shards: int
    wall_seconds: float
    work_seconds: float
    planned_seconds: float
    needed_seconds: float
    node_hours: float
    nodes_lost: int
    shards_repeated: int
    failures: dict[str, int]
    driver_cpu_seconds: float
    ray_seconds: float

    @property
    def ideal_seconds(self) -> float:
        return self.needed_seconds / self.workers

    @property
    def over_ideal(self) -> float:
        return self.work_seconds / self.ideal_seconds

    @property
    def driver_share(self) -> float:
        """Of the time of the work that the driver is busy; it has no more than one."""
        return (self.driver_cpu_seconds + self.ray_seconds) / self.work_seconds


def simulate(config: EmbedConfig, planned: Plan, conditions: Conditions, *, seed: int) -> Outcome:
    """ConfigError where an encoder's speed is unknown; ClusterError where the driver gives the run up."""
    cluster = SimulatedCluster(planned, conditions, seed)
    settings = WorkerSettings(
        storage=planned.source.storage,
        passes=planned.passes,
        device=config.device,
        dtype=config.dtype,
        token_budget=config.budget(),
        threads=1,
    )
    pool = Pool(config, planned, settings, cluster)
    summaries = [event for event in pool.run() if isinstance(event, ShardSummary)]
    done = Counter((item.encoder, item.shard) for item in summaries)
    assert done == Counter(item.name for item in planned.work), "the driver lost a shard, or did one twice"
    cost, counted = conditions.ray_cost, cluster.counted
    workers = min(config.actors, len(planned.work))
    nodes = math.ceil(workers / conditions.actors_per_node)
    first_pack = min(item.started_at for item in summaries)
    return Outcome(
        workers=workers,
        shards=len(planned.work),
        wall_seconds=cluster.now(),
        work_seconds=cluster.now() - first_pack,
        planned_seconds=planned.forecast.device_seconds or 0.0,
        needed_seconds=sum(item.encode_seconds for item in summaries),
        node_hours=nodes * cluster.now() / _SECONDS_PER_HOUR,
        nodes_lost=counted["node_lost"],
        shards_repeated=cluster.begun - len(planned.work),
        failures=dict(sorted(pool.failures.items())),
        driver_cpu_seconds=cluster.driver_cpu_seconds,
        ray_seconds=cost.call * (counted["call"] + counted["actor"])
        + cost.get * counted["get"]
        + cost.wait * counted["wait"]
        + cost.waited_ref * counted["waited_refs"],
    )
