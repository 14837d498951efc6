"""What a run will take, from what its shards hold and what was measured: hours, balance, money. Pure.

In: the list of work in the order in which actors take it, and an `EncoderCost` for each encoder pass. Out: a
`Forecast`; priced by `costs_by_price`, refused by `require_budget`. Called by the plan.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from pydantic import Field

from isoformer.config import FrozenConfig
from isoformer.embeddings.profile import EncoderCost
from isoformer.embeddings.workload import Workload
from isoformer.errors import BudgetError

_SECONDS_PER_HOUR = 3600.0


class Price(FrozenConfig):
    """A row of `embed.prices`: what a node costs, and how many actors run on one."""

    name: str = Field(min_length=1)
    dollars_per_hour: float = Field(ge=0)
    actors_per_node: int = Field(default=1, ge=1)
    hardware: str | None = Field(
        default=None,
        description="part of the hardware's name, such as A100; null: as fast as what was measured",
    )


@dataclass(frozen=True)
class Forecast:
    """`seconds`: wall time from the first pack to the last shard, None where a speed is unknown.

    `startup_seconds` goes before it: processes, imports and each actor's first encoder. `device_seconds`: of
    all shards on all actors. `balance`: the part of the actors' time that is spent on shards; 1 is perfect.
    `unknown`: encoders with work whose speed has not been measured.
    """

    seconds: float | None
    device_seconds: float | None
    startup_seconds: float | None
    balance: float | None
    actors: int
    unknown: list[str] = field(default_factory=list)

    @property
    def hours(self) -> float | None:
        """Start-up, where it is known, and all that comes after; 0 where there is nothing to do."""
        if not self.seconds:
            return self.seconds
        return (self.seconds + (self.startup_seconds or 0.0)) / _SECONDS_PER_HOUR


@dataclass(frozen=True)
class NodeCost:
    """A run at a price. `dollars` is None where the speed was not measured on that hardware."""

    name: str
    nodes: int
    node_hours: float | None
    dollars: float | None


def forecast(
    work: Sequence[tuple[int, Workload]],
    costs: Sequence[EncoderCost | None],
    actors: int,
    startup_seconds: float | None,
    *,
    names: Sequence[str],
) -> Forecast:
    """List scheduling: an actor that is free takes the next shard.

    `work`: (index into `costs` and `names`, what a shard holds) in the order in which shards are handed out.
    To change to another encoder costs an actor its `load_seconds`; the first one is part of start-up.
    """
    unknown = sorted({names[encoder] for encoder, _ in work if costs[encoder] is None})
    if unknown:
        return Forecast(None, None, startup_seconds, None, actors, unknown)
    device_seconds = 0.0
    free: list[tuple[float, int, int | None]] = [(0.0, actor, None) for actor in range(actors)]
    for encoder, workload in work:
        cost = costs[encoder]
        assert cost is not None
        at, actor, loaded = free[0]
        load = cost.load_seconds if loaded not in (None, encoder) else 0.0
        seconds = cost.seconds(workload)
        device_seconds += seconds
        heapq.heapreplace(free, (at + load + seconds, actor, encoder))
    makespan = max(at for at, _, _ in free)
    balance = device_seconds / (actors * makespan) if makespan else 1.0
    return Forecast(makespan, device_seconds, startup_seconds, balance, actors)


def costs_by_price(
    forecast: Forecast, prices: Sequence[Price], measured_on: Collection[str]
) -> list[NodeCost]:
    """The run at each price; whole nodes are paid for, from the start to the end."""
    costs = []
    for price in prices:
        nodes = math.ceil(forecast.actors / price.actors_per_node)
        node_hours = None if forecast.hours is None else nodes * forecast.hours
        known = node_hours == 0 or _measured(price.hardware, measured_on)
        dollars = node_hours * price.dollars_per_hour if node_hours is not None and known else None
        costs.append(NodeCost(price.name, nodes, node_hours, dollars))
    return costs


def require_budget(forecast: Forecast, budget_hours: float | None, what: str = "embedding") -> None:
    """BudgetError where a run would take longer than it may, or where nobody knows how long."""
    if budget_hours is None:
        return
    if forecast.hours is None:
        raise BudgetError(
            f"how long {what} takes is not known, so that --budget-hours {budget_hours:g} cannot be kept; "
            f"not measured: {_some(forecast.unknown)}: run `isoformer benchmark profile`"
        )
    if forecast.hours > budget_hours:
        raise BudgetError(
            f"{what} would take {_hours(forecast.hours)} on {forecast.actors} actor(s), more than "
            f"--budget-hours {budget_hours:g}: raise it, add actors, or lower what is asked of embed.encoders"
        )


def _measured(hardware: str | None, measured_on: Collection[str]) -> bool:
    """Whether every speed was taken on this hardware."""
    return bool(measured_on) and all((hardware or "").lower() in name.lower() for name in measured_on)


def _some(names: Sequence[str], most: int = 3) -> str:
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 0.1 else f"{hours * _SECONDS_PER_HOUR:.0f} s"
