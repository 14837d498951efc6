"""Find out which sequence loses its worker: a kill, a hang or a broken device says nothing of itself.

The first loss of a worker at a shard calls a witness: an actor that is told of every pack of that shard
before the device gets it. What it saw last goes sequence by sequence from then on, and a sequence that
loses its worker twice while it is alone is set aside, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from isoformer.embeddings.messages import Name, Orders
from isoformer.embeddings.pool_state import Item

CRASHES: Final = "crashes_worker"
STALLS: Final = "stalls_worker"

_STRIKES: Final = 2
"""So often a sequence must have lost its worker while it was alone."""
_WITNESS_SECONDS: Final = 30.0


class Witness:
    """An actor without a device: it outlives the worker that tells it what it is about to do."""

    def __init__(self) -> None:
        self._last: dict[Name, list[str]] = {}

    def note(self, work: Name, digests: list[str]) -> None:
        self._last.pop(work, None)
        self._last[work] = digests

    def latest(self, works: list[Name]) -> tuple[Name, list[str]] | None:
        """The last note of any of these shards."""
        return next(((work, self._last[work]) for work in reversed(self._last) if work in works), None)


@dataclass(frozen=True)
class RemoteWitness:
    """`workers.Witness` over the actor; returns once the actor has it, or is not there."""

    handle: Any

    def note(self, work: Name, digests: list[str]) -> None:
        import ray
        from ray.exceptions import RayError

        with suppress(RayError):  # without a witness there is no blame
            ray.get(self.handle.note.remote(work, digests), timeout=_WITNESS_SECONDS)


class Suspects:
    """The witness and what follows from what it saw. `say`: told of what is set aside."""

    def __init__(self, ray: Any, budget_tokens: int, say: Callable[[str], None]) -> None:
        self._ray, self._budget_tokens, self._say = ray, budget_tokens, say
        self._witness: Any = None

    def orders(self, item: Item) -> Orders:
        """As the shard's earlier attempts ask for, with the witness where there was one."""
        is_watched = item.is_watched and self._witness is not None
        return replace(item.orders, witness=RemoteWitness(self._witness) if is_watched else None)

    def after_loss(self, kind: str, items: Sequence[Item]) -> Item | None:
        """A worker that had these shards is lost: the one at fault, where that can be told.

        Its orders are changed. A node that is lost is nobody's fault.
        """
        if kind == "node_lost":
            return items[0] if items else None
        was_watched = any(item.is_watched for item in items)
        for item in items:
            item.is_watched = True
            if kind == "out_of_memory":
                budget = item.orders.most_tokens or self._budget_tokens
                item.orders = replace(item.orders, most_tokens=max(1, budget // 2))
        seen = self._seen([item.work.name for item in items])
        if seen is None or not was_watched:
            return items[0] if len(items) == 1 else None
        guilty = next(item for item in items if item.work.name == seen[0])
        self._suspect(guilty, seen[1], kind)
        return guilty

    def end(self) -> None:
        """Dismiss the witness."""
        if self._witness is not None:
            self._ray.kill(self._witness)

    def _suspect(self, item: Item, digests: list[str], kind: str) -> None:
        item.orders = replace(item.orders, alone=item.orders.alone | frozenset(digests))
        if len(digests) != 1 or kind == "out_of_memory":
            return
        (digest,) = digests
        item.strikes[digest] += 1
        if item.strikes[digest] == _STRIKES:
            reason = STALLS if kind == "worker_stalled" else CRASHES
            item.orders = replace(item.orders, left_out={**item.orders.left_out, digest: reason})
            item.failures = 0
            self._say(f"sequence {digest} of shard {item.work.shard} is set aside: {reason}")

    def _seen(self, names: list[Name]) -> tuple[Name, list[str]] | None:
        """What the witness saw last of these shards; a witness that is gone, too, is replaced."""
        from ray.exceptions import RayError

        if self._witness is not None:
            try:
                seen: tuple[Name, list[str]] | None = self._ray.get(
                    self._witness.latest.remote(names), timeout=_WITNESS_SECONDS
                )
                return seen
            except RayError:
                self._ray.kill(self._witness)
        self._witness = self._ray.remote(num_cpus=0)(Witness).remote()
        return None
