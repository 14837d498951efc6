"""Hand the shards of a plan to workers, and see every one of them done: the driver of an embedding run.

Plain Ray tasks cut and tokenise a few shards ahead; plain Ray actors (`EncodeWorker`) encode and write
them. Each worker has one shard on its device and one waiting. What this loop sees to, and a pool that is
handed out by a library does not:

- the costliest shard goes first; at the end an idle worker takes over a shard that still waits elsewhere, and
  doubles one whose worker is far slower than the others (the store keeps whichever is published first);
- a worker that is lost is replaced and its shards are done again; one that makes no progress is named, killed
  and replaced;
- a shard that kills its worker again and again is encoded with a witness, then its suspect sequences alone,
  until the guilty one is known and set aside;
- all of this within `most_failures`, after which the run ends with an error and can be started again.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from isoformer.embeddings.cluster import Cluster, LiveCluster
from isoformer.embeddings.config import EmbedConfig
from isoformer.embeddings.counters import RunCounters
from isoformer.embeddings.messages import Name, ShardSummary, WorkError, WorkerSettings, WorkerStatus
from isoformer.embeddings.plan import Plan
from isoformer.embeddings.pool_state import Item, Ref, Slot
from isoformer.embeddings.suspects import Suspects
from isoformer.embeddings.workers import EncodeWorker, tokenise_work
from isoformer.errors import ClusterError, FingerprintError, StorageError

_NOT_THE_RUN_S: Final = ("node_lost", "storage", "tokens_lost")
_POLL_SECONDS: Final = 1.0
_DYING_SECONDS: Final = 60.0
_GLANCE: Final = 64
"""So many of the shards in a queue are looked at for the next one."""
_SHARDS_A_WORKER: Final = 2
_ATTEMPTS: Final = 5
"""Failures of one shard since a sequence of it was last set aside."""
_SLOW: Final = 3.0
_SLOW_SECONDS: Final = 30.0
_BACK_OFF_SECONDS: Final = 1.0

_CANNOT_START: Final = "error raised in its creation task"
_PHRASES: Final = {"its node has died": "node_lost", "running low on memory": "out_of_memory"}
"""What Ray says of a worker's end, and what we call it."""

_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class PoolStatus:
    """Told every second. `busy`: part of the workers' time that their devices were at work.

    `running_seconds`: since the first pack of any worker.
    """

    workers: int
    tokens_done: int
    running_seconds: float
    busy: float | None


class Pool:
    """One run over a plan's work, on the cluster that Ray is connected to if no other. Use `run` once."""

    def __init__(
        self, config: EmbedConfig, planned: Plan, settings: WorkerSettings, cluster: Cluster | None = None
    ) -> None:
        self._cluster = cluster or LiveCluster()
        self._ray = self._cluster.ray
        self._config, self._planned, self._settings = config, planned, settings
        # no CPU of its own: workers that come in place of lost ones could take the last one from it
        self._tokenise = self._ray.remote(num_cpus=0, num_returns=2, scheduling_strategy="SPREAD")(
            tokenise_work
        )
        self._worker = self._ray.remote(
            num_cpus=config.cpus_per_actor,
            num_gpus=config.gpus_per_actor,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=_SHARDS_A_WORKER,
            concurrency_groups={"status": 1},
            scheduling_strategy="SPREAD",
        )(EncodeWorker)
        self._items = {item.name: Item(item) for item in planned.work}
        self._waiting = deque(item.name for item in planned.work)
        self._tokenising: dict[Ref, Name] = {}
        self._tokenised: deque[Name] = deque()
        self._done: dict[Name, ShardSummary] = {}
        self._slots: list[Slot] = []
        self._owing: dict[Ref, Slot] = {}
        self._polled_at = self._cluster.now()
        self._tokens_published = 0
        self._pace: dict[int, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
        self._counters = RunCounters(planned)
        self.failures: Counter[str] = Counter()
        self.notes: list[str] = []
        self._suspects = Suspects(self._ray, settings.token_budget.tokens, self.notes.append)

    def run(self) -> Iterator[ShardSummary | PoolStatus]:
        """Summaries as shards are done, and a status every second in between.

        The error that a worker met, where it is the input's or the configuration's; ClusterError where the
        run is given up. Nothing that was published is lost.
        """
        workers = min(self._config.actors, len(self._items))
        self._cluster.require_room(self._config, workers)
        try:
            self._slots = [self._started() for _ in range(workers)]
            while len(self._done) < len(self._items):
                self._tokenise_ahead()
                self._hand_out()
                for ref in self._finished():
                    summary = self._taken(ref)
                    if summary is not None:
                        yield summary
                if self._cluster.now() - self._polled_at >= self._poll_seconds:
                    yield self._polled()
        finally:
            self._end()

    @property
    def _poll_seconds(self) -> float:
        """Ten thousand workers are asked every hundred seconds, not all in each."""
        return max(_POLL_SECONDS, len(self._slots) / 100)

    def _started(self) -> Slot:
        handle = self._worker.remote(self._settings)
        slot = Slot(handle, handle.identity.remote())
        self._owing[slot.identity] = slot
        return slot

    def _tokenise_ahead(self) -> None:
        """A shard for every worker that is there, and one more for every task."""
        if not self._waiting:
            return
        most = self._config.tokenise_at_once()
        ready = sum(slot.is_ready for slot in self._slots)
        ahead = max(1, ready) + most - len(self._tokenised)
        for name in self._due(self._waiting)[: max(0, min(most, ahead))]:
            if len(self._tokenising) >= most:
                return
            self._waiting.remove(name)
            item = self._items[name]
            met, item.tokens = self._tokenise.remote(item.work, self._planned.source, self._planned.passes)
            self._tokenising[met] = name

    def _due(self, names: Iterable[Name]) -> list[Name]:
        """Those that are not held back after a failure, in order; a few are enough."""
        now = self._cluster.now()
        return list(islice((name for name in names if self._items[name].not_before <= now), _GLANCE))

    def _hand_out(self) -> None:
        """One shard to each worker that has none, then a second; where none is left, another's."""
        hungry = [slot for slot in self._slots if slot.is_ready and len(slot.running) < _SHARDS_A_WORKER]
        for round_ in range(_SHARDS_A_WORKER):
            for slot in hungry:
                if len(slot.running) == round_ and (name := self._next(slot)) is not None:
                    self._give(slot, name)
        if self._waiting or self._tokenising or self._tokenised:
            return
        idle = [slot for slot in hungry if not slot.running]
        if idle:
            self._take_over(idle)

    def _next(self, slot: Slot) -> Name | None:
        """The next shard in order, of the encoder that the worker has loaded if there is one."""
        if not self._tokenised:
            return None
        due = self._due(self._tokenised)
        name = next((name for name in due if name[0] == slot.encoder), due[0] if due else None)
        if name is not None:
            self._tokenised.remove(name)
        return name

    def _give(self, slot: Slot, name: Name) -> None:
        item = self._items[name]
        ref = slot.handle.encode.remote(item.work, item.tokens, self._suspects.orders(item))
        slot.running[ref], self._owing[ref] = name, slot
        item.workers.append(slot)
        slot.given_at[name] = self._cluster.now()
        slot.encoder = name[0]

    def _take_over(self, idle: list[Slot]) -> None:
        """Shards that wait at another worker, and those that go far slower than they should."""
        owners = self._owners()
        for name, slots in owners.items():
            if not idle:
                return
            owner = slots[0]
            if len(slots) != 1 or owner in idle or owner.status is None:
                continue
            stage = owner.status.stages.get(name)
            if stage == "waiting" and len(owner.running) > 1:
                self._tell_to_abandon(owner, name, started_too=False)
            elif stage == "encoding" and self._is_slow(owner, name):
                self.notes.append(f"{owner.told} is slow on shard {name[1]}: another worker does it too")
            else:
                continue
            self._give(idle.pop(), name)

    def _owners(self) -> dict[Name, list[Slot]]:
        given = (name for slot in self._slots for name in slot.running.values())
        return {name: self._items[name].workers for name in given if name not in self._done}

    def _is_slow(self, slot: Slot, name: Name) -> bool:
        """By what the other shards of the same encoder took a token."""
        seconds, tokens = self._pace[name[0]]
        spent = self._cluster.now() - slot.encoding_since.get(name, self._cluster.now())
        expected = seconds / tokens * self._items[name].work.load.tokens if tokens else math.inf
        return spent > _SLOW * expected + _SLOW_SECONDS

    def _tell_to_abandon(self, slot: Slot, name: Name, *, started_too: bool) -> None:
        slot.handle.abandon.options(concurrency_group="status").remote(name, started_too=started_too)

    def _finished(self) -> list[Ref]:
        refs = [*self._tokenising, *self._owing]
        if not refs:
            self._cluster.sleep(0.05)  # a shard that is held back for a moment after a failure
            return []
        found, others = self._ray.wait(refs, num_returns=1, timeout=0.2, fetch_local=False)
        if not found or not others:
            return found
        return [*found, *self._ray.wait(others, num_returns=len(others), timeout=0, fetch_local=False)[0]]

    def _taken(self, ref: Ref) -> ShardSummary | None:
        if ref in self._tokenising:
            self._is_tokenised(ref)
            return None
        slot = self._owing.pop(ref, None)
        if slot is None:
            return None  # of a worker that was lost a moment ago
        if ref in slot.running:
            return self._result(slot, ref)
        if ref == slot.identity:
            self._welcome(slot)
        else:
            self._heard(slot)
        return None

    def _welcome(self, slot: Slot) -> None:
        from ray.exceptions import RayError

        try:
            slot.place = self._ray.get(slot.identity)
        except RayError as error:
            self._lost(slot, error)
            return
        slot.identity, slot.answered_at = None, self._cluster.now()

    def _heard(self, slot: Slot) -> None:
        from ray.exceptions import RayError

        asked, slot.asked = slot.asked, None
        try:
            status = self._ray.get(asked)
        except RayError as error:
            self._lost(slot, error)
            return
        now = self._cluster.now()
        slot.status, slot.answered_at = status, now
        slot.encoding_since = {
            name: slot.encoding_since.get(name, now)
            for name, stage in status.stages.items()
            if stage == "encoding"
        }

    def _is_tokenised(self, ref: Ref) -> None:
        """The worker's turn, unless the task met an error or was lost."""
        from ray.exceptions import RayError

        name = self._tokenising.pop(ref)
        try:
            met = self._ray.get(ref)
        except RayError as error:
            self._tried_in_vain(name, "tokenise_failed", f"shard {name[1]}: {_told(error)}")
            return
        if met is not None:
            self._met(name, met, "a tokenise task")
            return
        self._tokenised.append(name)

    def _result(self, slot: Slot, ref: Ref) -> ShardSummary | None:
        from ray.exceptions import RayActorError, RayError, RayTaskError

        name = slot.running[ref]
        try:
            result = self._ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, RayError):
                self._tokens_lost(slot, ref, error)
                return None
            slot.kind = "worker_failed"  # nothing that was foreseen; its device may be unusable
            self._lost(slot, error, at=name)
            return None
        except RayActorError as error:
            self._lost(slot, error)
            return None
        except RayError as error:
            self._tokens_lost(slot, ref, error)
            return None
        self._take_back(slot, ref)
        if isinstance(result, ShardSummary):
            return self._summary(name, result)
        if isinstance(result, WorkError) and name not in self._done:
            self._met(name, result, slot.told)
        else:
            self._requeue(name)
        return None

    def _tokens_lost(self, slot: Slot, ref: Ref, error: Exception) -> None:
        """With the node that held them, or because no task can make them."""
        name = slot.running[ref]
        self._take_back(slot, ref)
        self._tried_in_vain(name, "tokens_lost", f"shard {name[1]}: {_told(error)}")

    def _take_back(self, slot: Slot, ref: Ref) -> None:
        """It has returned."""
        self._items[slot.running[ref]].workers.remove(slot)
        slot.forget(ref)

    def _requeue(self, name: Name, *, tokenise: bool = False) -> None:
        """Put a shard back, unless it is done or another worker is at it."""
        item = self._items[name]
        if name in self._done or item.workers:
            return
        if tokenise or item.tokens is None:
            item.tokens = None
            self._waiting.appendleft(name)
        else:
            self._tokenised.appendleft(name)

    def _summary(self, name: Name, summary: ShardSummary) -> ShardSummary | None:
        if name in self._done:
            return None
        self._done[name] = summary
        item = self._items[name]
        item.tokens = None  # Ray may drop them
        self._tokens_published += item.work.load.tokens
        if summary.workload.tokens:
            seconds, tokens = self._pace[name[0]]
            self._pace[name[0]] = (seconds + summary.encode_seconds, tokens + summary.workload.tokens)
        self._counters.published(summary)
        for slot in item.workers:
            self._tell_to_abandon(slot, name, started_too=True)
        return summary

    def _met(self, name: Name, error: WorkError, where: str) -> None:
        """Storage is tried again; whatever else is named, the next worker would meet too."""
        found = error.error()
        if not isinstance(found, StorageError) or isinstance(found, FingerprintError):
            raise found
        self._tried_in_vain(name, "storage", f"{where}: {found}")

    def _tried_in_vain(self, name: Name, kind: str, text: str) -> None:
        """Once more from the beginning, after a while."""
        item = self._items[name]
        self._failed(item, kind, text)
        item.not_before = self._cluster.now() + _BACK_OFF_SECONDS * 2**item.failures * self._cluster.jitter()
        self._requeue(name, tokenise=True)

    def _lost(self, slot: Slot, error: Exception, at: Name | None = None) -> None:
        """A worker is gone: its shards go back, the one it was at is suspected, another takes its place."""
        self._slots.remove(slot)
        for ref in (slot.identity, slot.asked, *slot.running):
            self._owing.pop(ref, None)
        for name in slot.running.values():
            self._items[name].workers.remove(slot)
        self._ray.kill(slot.handle)
        text = _told(error)
        if _CANNOT_START in str(error):
            raise ClusterError(f"an embedding worker cannot start: {text}") from error
        slot.kind = next((kind for phrase, kind in _PHRASES.items() if phrase in str(error)), slot.kind)
        names = [name for name in slot.running.values() if name not in self._done]
        for name in names:
            self._requeue(name)
        at_fault = [self._items[name] for name in ([at] if at in names else names)]
        blamed = self._suspects.after_loss(slot.kind, at_fault)
        self._failed(blamed, slot.kind, f"{slot.told}, {slot.doing}: {text}")
        if len(self._slots) < len(self._items) - len(self._done):
            self._slots.append(self._started())

    def _failed(self, item: Item | None, kind: str, text: str) -> None:
        """Note a failure. ClusterError where there have been too many.

        Storage and nodes that come and go are held against a shard alone, and not against the run.
        """
        self.failures[kind] += 1
        self._counters.failed(item.work.encoder if item else None, kind)
        self.notes.append(f"{kind}: {text}")
        if item is not None:
            item.failures += 1
        total = sum(count for kind, count in self.failures.items() if kind not in _NOT_THE_RUN_S)
        most = max(self._config.most_failures, len(self._slots) // 5)
        if total > most or (item is not None and item.failures >= _ATTEMPTS):
            counted = ", ".join(f"{kind} {count}" for kind, count in sorted(self.failures.items()))
            raise ClusterError(
                f"embedding is given up after {self.failures.total()} failures ({counted}); the last: {text};"
                " what is published stays: mend the cause, run the same command again and it goes on"
            )

    def _polled(self) -> PoolStatus:
        """Ask every worker how it is; name and kill the ones that make no progress."""
        self._cluster.require_own_node()
        now = self._polled_at = self._cluster.now()
        for slot in [slot for slot in self._slots if slot.is_ready]:
            still_seconds = slot.still_seconds(now)
            if slot.killed_at is not None and now - slot.killed_at > _DYING_SECONDS:
                self._lost(slot, ClusterError("it does not die either"))
                continue
            if still_seconds > self._config.stall_seconds and slot.killed_at is None:
                self.notes.append(
                    f"{slot.told} has made no progress for {still_seconds:.0f} s, {slot.doing}: killed"
                )
                slot.kind, slot.killed_at = "worker_stalled", now
                self._cluster.kill_process(node=slot.place[1], pid=slot.place[2])
            if slot.asked is None:
                slot.asked = slot.handle.status.options(concurrency_group="status").remote()
                self._owing[slot.asked] = slot
        queue = {"waiting": self._waiting, "tokenising": self._tokenising, "tokenised": self._tokenised}
        self._counters.polled(self._slots, {stage: len(shards) for stage, shards in queue.items()})
        statuses = [slot.status for slot in self._slots if slot.status]
        alive = sum(status.alive_seconds for status in statuses)
        return PoolStatus(
            workers=sum(slot.is_ready for slot in self._slots),
            tokens_done=self._tokens_done(statuses),
            running_seconds=max((status.alive_seconds for status in statuses), default=0.0),
            busy=sum(status.busy_seconds for status in statuses) / alive if alive else None,
        )

    def _tokens_done(self, statuses: list[WorkerStatus]) -> int:
        """Of shards that are published, and of those at work."""
        at_work = {name: tokens for status in statuses for name, tokens in status.tokens.items()}
        doing = sum(tokens for name, tokens in at_work.items() if name not in self._done)
        return self._tokens_published + doing

    def _end(self) -> None:
        self._counters.ended()
        if self._ray.is_initialized():
            for slot in self._slots:
                self._ray.kill(slot.handle)
            self._suspects.end()


def _told(error: Exception) -> str:
    """What Ray says in a page, in a line: the end of a traceback, the beginning of anything else."""
    lines = [line.strip() for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()]
    is_traceback = any(line.startswith("File ") for line in lines)
    return " ".join(lines[-1:] if is_traceback else lines[:1])[:300]
