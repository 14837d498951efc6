"""A simulated cluster for the real driver of an embedding run: its workers take time and do nothing else.

`embeddings.pool.Pool` runs on it unchanged. It asks for actors and tasks as it asks Ray; what it waits for
comes about in virtual time, by `Conditions`: nodes start, shards take what their cost model says, times a
lognormal factor, nodes are lost at a rate. Every call of the driver costs it virtual time as well, and what
the driver's own code took of this processor is kept apart (`driver_cpu_seconds`).

Left out: what Ray does again by itself (tokens that are lost with a node), stalls, full memory, throttling.
"""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import islice
from typing import Any, Final

from isoformer.benchmark.schedule_worker import Ref, SimulatedWorker
from isoformer.embeddings.config import EmbedConfig
from isoformer.embeddings.plan import Plan, ShardWork
from isoformer.embeddings.workers import EncodeWorker
from isoformer.errors import ConfigError

_STEP_SECONDS: Final = 5.0
"""Where nothing happens the real driver looks up five times a second; here so often, which is much faster."""


@dataclass(frozen=True)
class RayCost:
    """Seconds that calls cost the driver. The defaults are assumed; `schedule_real.measure_ray` measures."""

    call: float = 150e-6
    get: float = 100e-6
    wait: float = 100e-6
    waited_ref: float = 1e-6


@dataclass(frozen=True)
class Conditions:
    """What the simulation supposes of the world. Spreads: sigma of a lognormal factor with mean one.

    `actors_per_second`: as Ray creates them; its own release test with 10,000 on 64 nodes (1.12) did 389.
    `tokenise_seconds_per_token`: by encoder; none: no time. `publish_bytes_per_second`: of one worker.
    `kill_after_shards`: one process is killed then.
    """

    actors_per_node: int = 1
    node_start_seconds: float = 0.0
    process_start_seconds: float = 0.0
    actors_per_second: float = 389.0
    shard_spread: float = 0.0
    worker_spread: float = 0.0
    node_losses_per_hour: float = 0.0
    loss_noticed_seconds: float = 15.0
    tokenise_seconds_per_token: tuple[float, ...] = ()
    request_seconds: float = 0.0
    publish_bytes_per_second: float = float("inf")
    latency_seconds: float = 1e-3
    kill_after_shards: int | None = None
    ray_cost: RayCost = field(default_factory=RayCost)


@dataclass(eq=False)
class _Node:
    number: int
    workers: list[SimulatedWorker] = field(default_factory=list)


class SimulatedCluster:
    """`embeddings.cluster.Cluster`, and the `ray` of it. One plan, one run."""

    def __init__(self, planned: Plan, conditions: Conditions, seed: int) -> None:
        if any(cost is None for cost in planned.costs):
            raise ConfigError("benchmark schedule: an encoder of the plan has no cost; profile it first")
        self.ray: Any = self
        self.planned, self.conditions = planned, conditions
        self.random = random.Random(seed)
        self.counted: Counter[str] = Counter()
        self.begun = 0
        self._seconds = self._event_seconds = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._there: dict[Ref, None] = {}
        self._room: list[_Node] = []
        self._unplaced: deque[SimulatedWorker] = deque()
        self._nodes_coming, self._is_placing = 0, False
        import_module("ray.exceptions")  # which the driver would import in the time that is measured
        self._begun_cpu, self._inside_cpu = time.thread_time(), 0.0

    # what the driver asks of its cluster

    def now(self) -> float:
        return self._seconds

    def sleep(self, seconds: float) -> None:
        self._seconds += seconds
        self._fire_until(self._seconds)

    def jitter(self) -> float:
        return self.random.uniform(0.5, 1)

    def require_room(self, config: EmbedConfig, workers: int) -> None:
        """There is: nodes come until all workers have a place."""

    def require_own_node(self) -> None:
        """It is never lost."""

    def kill_process(self, *, node: str, pid: int) -> None:
        """Nothing stalls here."""

    @property
    def driver_cpu_seconds(self) -> float:
        """Of this processor, in the driver's own code, from the beginning until now."""
        return time.thread_time() - self._begun_cpu - self._inside_cpu

    # what it asks of Ray

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        """A factory of simulated workers, of simulated tokenise tasks, or the thing itself."""

        def of(thing: Any) -> Any:
            if isinstance(thing, type) and issubclass(thing, EncodeWorker):
                return _Factory(self._new_worker)
            if isinstance(thing, type):
                return _Factory(partial(_Local, self, thing))
            return _Factory(self._tokenise)

        return of

    def is_initialized(self) -> bool:
        return True

    def kill(self, handle: Any) -> None:
        if isinstance(handle, SimulatedWorker) and handle.is_alive:
            handle.end(None)
            self._leave(handle)
        for ref in [ref for ref in self._there if ref.owner is handle]:
            del self._there[ref]

    def get(self, ref: Ref, timeout: float | None = None) -> Any:
        self._seconds += self.conditions.ray_cost.get
        self.counted["get"] += 1
        if isinstance(ref.value, Exception):
            raise ref.value
        return ref.value

    def wait(
        self, refs: Sequence[Ref], *, num_returns: int, timeout: float, fetch_local: bool
    ) -> tuple[list[Ref], list[Ref]]:
        """Those that are there, each told once; virtual time goes on until one is, or for a step.

        The driver waits for all that it is owed, one or all of it: others are not kept up for more than one.
        """
        begun = time.thread_time()
        cost = self.conditions.ray_cost
        self._seconds += cost.wait + cost.waited_ref * len(refs)
        self.counted["wait"] += 1
        self.counted["waited_refs"] += len(refs)
        self._fire_until(self._seconds)
        limit = self._seconds + (max(timeout, _STEP_SECONDS) if timeout else 0.0)
        while not self._there and self._seconds < limit:
            if self._events and self._events[0][0] <= limit:
                self._fire()
                self._seconds = max(self._seconds, self._event_seconds)
            else:
                self._seconds = limit
        found = list(islice(self._there, num_returns))
        others = list(refs) if len(found) < len(refs) else []
        for ref in found:
            del self._there[ref]
            if others and num_returns == 1:
                others.remove(ref)
        self._inside_cpu += time.thread_time() - begun
        return found, others

    # what the simulated workers ask of it

    def at(self, seconds: float, happens: Callable[[], None]) -> None:
        """Of virtual time."""
        heapq.heappush(self._events, (seconds, self.counted["event"], happens))
        self.counted["event"] += 1

    def after(self, seconds: float, happens: Callable[[], None]) -> None:
        self.at(self._event_seconds + seconds, happens)

    def resolve(self, ref: Ref, value: Any) -> None:
        """There is an answer, which the driver waits for."""
        ref.value = value
        self._there[ref] = None

    def called(self, happens: Callable[[], None]) -> None:
        """The driver calls a worker: it costs the driver, and arrives a little later."""
        self._seconds += self.conditions.ray_cost.call
        self.counted["call"] += 1
        self.at(self._seconds + self.conditions.latency_seconds, happens)

    def event_seconds(self) -> float:
        """When what happens now happens."""
        return self._event_seconds

    def factor(self, spread: float) -> float:
        """Lognormal, with mean one."""
        return self.random.lognormvariate(-(spread**2) / 2, spread) if spread else 1.0

    def encode_seconds(self, work: ShardWork) -> float:
        """Of an attempt that begins now."""
        self.begun += 1
        cost = self.planned.costs[work.encoder]
        assert cost is not None
        return cost.seconds(work.load) * self.factor(self.conditions.shard_spread)

    def load_seconds(self, encoder: int) -> float:
        cost = self.planned.costs[encoder]
        assert cost is not None
        return cost.load_seconds

    def shard_is_done(self) -> None:
        """Published."""
        self.counted["published"] += 1
        if self.counted["published"] == self.conditions.kill_after_shards:
            self.after(0.0, self._kill_one)

    # what happens by itself

    def _new_worker(self, *_: Any) -> SimulatedWorker:
        self._seconds += self.conditions.ray_cost.call
        self.counted["actor"] += 1
        worker = SimulatedWorker(self, self.counted["actor"])
        self._unplaced.append(worker)
        if not self._is_placing:
            self._is_placing = True
            self.at(self._seconds, self._place)
        return worker

    def _place(self) -> None:
        """Workers that have no node yet, on nodes with room; a node is ordered where there are too few."""
        conditions, self._is_placing = self.conditions, False
        for node in self._room:
            while self._unplaced and len(node.workers) < conditions.actors_per_node:
                worker = self._unplaced.popleft()
                worker.node = node
                node.workers.append(worker)
                created = max(self._event_seconds, worker.number / conditions.actors_per_second)
                self.at(created + conditions.process_start_seconds, worker.start)
        while self._unplaced and self._nodes_coming * conditions.actors_per_node < len(self._unplaced):
            self._nodes_coming += 1
            self.after(conditions.node_start_seconds, self._node_comes)

    def _node_comes(self) -> None:
        self._nodes_coming -= 1
        self.counted["node"] += 1
        node = _Node(self.counted["node"])
        self._room.append(node)
        if self.conditions.node_losses_per_hour:
            hours = self.random.expovariate(self.conditions.node_losses_per_hour)
            self.after(hours * 3600.0, partial(self._node_goes, node))
        self._place()

    def _node_goes(self, node: _Node) -> None:
        self.counted["node_lost"] += 1
        self._room.remove(node)
        for worker in node.workers:
            worker.stop()
            self.after(self.conditions.loss_noticed_seconds, partial(worker.end, "its node has died"))

    def _kill_one(self) -> None:
        """A process that is at a shard ends without a word; its node stays."""
        victim = next(worker for node in self._room for worker in node.workers if worker.is_encoding)
        victim.end("the worker process was killed")
        self._leave(victim)

    def _leave(self, worker: SimulatedWorker) -> None:
        if worker.node is None:
            self._unplaced.remove(worker)
        elif worker in worker.node.workers:
            worker.node.workers.remove(worker)

    def _tokenise(self, work: ShardWork, *_: Any) -> tuple[Ref, Ref]:
        met = Ref()
        by_encoder = self.conditions.tokenise_seconds_per_token
        each = by_encoder[work.encoder] if by_encoder else 0.0
        seconds = self.conditions.request_seconds + each * work.load.tokens

        def done() -> None:
            self.resolve(met, None)

        self.called(lambda: self.after(seconds, done))
        return met, Ref()

    def _fire_until(self, seconds: float) -> None:
        while self._events and self._events[0][0] <= seconds:
            self._fire()

    def _fire(self) -> None:
        self._event_seconds, _, happens = heapq.heappop(self._events)
        happens()


class _Factory:
    """What `ray.remote` makes of a class or a function."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.remote = make


class _Local:
    """An actor that costs no time to speak of, such as the witness: its methods are really called."""

    def __init__(self, cluster: SimulatedCluster, thing: type) -> None:
        self._cluster, self._made = cluster, thing()

    def __getattr__(self, name: str) -> _Factory:
        def call(*arguments: Any) -> Ref:
            ref = Ref()
            ref.value = getattr(self._made, name)(*arguments)
            return ref

        return _Factory(call)
