"""A worker of a simulated cluster: what `embeddings.workers.EncodeWorker` does, in virtual time.

One shard is on the device, others wait; publishing goes on beside the next shard, as at the real one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from isoformer.embeddings.messages import Name, Orders, ShardSummary, Stage, WorkerStatus
from isoformer.embeddings.plan import ShardWork

if TYPE_CHECKING:
    from isoformer.benchmark.schedule_cluster import SimulatedCluster


class Ref:
    """Of something that will be there, owed by `owner`."""

    __slots__ = ("owner", "value")

    def __init__(self, owner: SimulatedWorker | None = None) -> None:
        self.owner, self.value = owner, None


class _Method:
    def __init__(self, call: Callable[..., Ref]) -> None:
        self.remote = call

    def options(self, **_: Any) -> _Method:
        return self


class SimulatedWorker:
    """The handle and the process in one. `node`: where it is, once it has a place."""

    def __init__(self, cluster: SimulatedCluster, number: int) -> None:
        self._cluster, self.number = cluster, number
        self.node: Any = None
        self.is_alive = True
        self._is_running = True
        self._slowness = cluster.factor(cluster.conditions.worker_spread)
        self._place = Ref(self)
        self._owed: dict[Ref, None] = {self._place: None}
        self._queue: deque[tuple[ShardWork, Ref]] = deque()
        self._on_device: tuple[ShardWork, Ref] | None = None
        self._loaded: int | None = None
        self._stages: dict[Name, Stage] = {}
        self._abandoned: set[Name] = set()
        self._begun_seconds = self._busy_seconds = 0.0
        self._first_pack_seconds: float | None = None
        self.identity = _Method(lambda: self._place)
        self.encode = _Method(self._given)
        self.status = _Method(self._asked)
        self.abandon = _Method(self._told_to_abandon)

    @property
    def is_encoding(self) -> bool:
        return self._on_device is not None

    def start(self) -> None:
        """The process is up."""
        if self._is_running:
            self._return(self._place, ("simulated", f"node-{self.node.number}", self.number))

    def stop(self) -> None:
        """It does nothing any more, though nobody knows yet."""
        self._is_running = False

    def end(self, reason: str | None) -> None:
        """All that it owes ends in an error, unless nobody waits for it."""
        from ray.exceptions import RayActorError

        self.is_alive = self._is_running = False
        if reason is not None:
            for ref in self._owed:
                self._cluster.resolve(ref, RayActorError(error_msg=reason))
        self._owed = {}

    def _given(self, work: ShardWork, tokens: Ref, orders: Orders) -> Ref:
        return self._call(partial(self._receive, work))

    def _asked(self) -> Ref:
        return self._call(lambda ref: self._return(ref, self._status()))

    def _told_to_abandon(self, name: Name, *, started_too: bool) -> Ref:
        self._cluster.called(lambda: self._abandon(name, started_too) if self._is_running else None)
        return Ref()

    def _call(self, happens: Callable[[Ref], None]) -> Ref:
        ref = Ref(self)
        self._owed[ref] = None
        self._cluster.called(lambda: happens(ref) if self._is_running else None)
        if not self.is_alive:
            self.end("the worker process was killed")
        return ref

    def _return(self, ref: Ref, value: Any) -> None:
        self._owed.pop(ref, None)
        self._cluster.resolve(ref, value)

    def _receive(self, work: ShardWork, ref: Ref) -> None:
        self._stages[work.name] = "waiting"
        self._queue.append((work, ref))
        if self._on_device is None:
            self._begin()

    def _begin(self) -> None:
        """The next shard on the device; one that was abandoned returns when its turn comes."""
        while self._queue and self._queue[0][0].name in self._abandoned:
            self._give_up(*self._queue.popleft())
        if not self._queue:
            return
        work, ref = self._on_device = self._queue.popleft()
        is_loaded = self._loaded == work.encoder
        self._stages[work.name] = "encoding" if is_loaded else "loading"
        seconds = 0.0 if is_loaded else self._cluster.load_seconds(work.encoder)
        self._loaded = work.encoder
        self._cluster.after(seconds, partial(self._encode, work, ref))

    def _encode(self, work: ShardWork, ref: Ref) -> None:
        if not self._is_on_device(ref):
            return
        self._stages[work.name] = "encoding"
        self._begun_seconds = self._cluster.event_seconds()
        if self._first_pack_seconds is None:
            self._first_pack_seconds = self._begun_seconds
        seconds = self._cluster.encode_seconds(work) * self._slowness
        self._cluster.after(seconds, partial(self._publish, work, ref, seconds))

    def _publish(self, work: ShardWork, ref: Ref, seconds: float) -> None:
        if not self._is_on_device(ref):
            return
        self._stages[work.name] = "publishing"
        self._busy_seconds += seconds
        self._on_device = None
        conditions = self._cluster.conditions
        sending = conditions.request_seconds + work.load.output_bytes / conditions.publish_bytes_per_second
        began = self._begun_seconds
        self._cluster.after(sending, partial(self._published, work, ref, began, began + seconds))
        self._begin()

    def _published(self, work: ShardWork, ref: Ref, started_at: float, encoded_at: float) -> None:
        if not self._is_running:
            return
        self._stages.pop(work.name, None)
        self._cluster.shard_is_done()
        self._return(ref, self._summary(work, started_at, encoded_at))

    def _abandon(self, name: Name, started_too: bool) -> None:
        if self._on_device is not None and self._on_device[0].name == name:
            if started_too:
                given, self._on_device = self._on_device, None
                self._give_up(*given)
                self._begin()
        elif self._stages.get(name) == "waiting":
            self._abandoned.add(name)

    def _give_up(self, work: ShardWork, ref: Ref) -> None:
        self._abandoned.discard(work.name)
        self._stages.pop(work.name, None)
        self._return(ref, None)

    def _is_on_device(self, ref: Ref) -> bool:
        return self._is_running and self._on_device is not None and self._on_device[1] is ref

    def _status(self) -> WorkerStatus:
        now = self._cluster.event_seconds()
        first = self._first_pack_seconds
        return WorkerStatus(
            dict(self._stages), {}, "", 0.0, now - first if first else 0.0, self._busy_seconds
        )

    def _summary(self, work: ShardWork, started_at: float, encoded_at: float) -> ShardSummary:
        entry: Any = {"quarantined": {}}
        return ShardSummary(
            encoder=work.encoder,
            shard=work.shard,
            entries={header.key: entry for header in work.missing},
            workload=work.load,
            written=len(work.missing),
            reused=0,
            packs=1,
            padding_tokens=0,
            started_at=started_at,
            encoded_at=encoded_at,
            busy_seconds=encoded_at - started_at,
            load_seconds=None,
            publish_seconds=0.0,
            token_budget=0,
            budget_halvings=0,
            hardware="simulated",
            worker=str(self.number),
        )
