"""What a sweep found, as it stands in trials.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from isoformer.sweep.study import TrialRow

if TYPE_CHECKING:
    from isoformer.training.config import TrainConfig

Status = Literal["finished", "stopped", "paused", "cancelled"]
VERSION: Final = 2


@dataclass(frozen=True)
class SweepResult:
    """Every trial, the best one and its training configuration, and how the sweep ended.

    `about` holds what else trials.json says: budget, sampler, scheduler, dataset, database; `configs` the
    training configurations of the best trials, as many as there are to be final models.
    """

    study: str
    metric: str
    folder: str
    trials: list[TrialRow]
    best: TrainConfig | None
    best_trial: TrialRow | None
    importances: dict[str, float]
    objectives: tuple[tuple[str, str], ...]
    status: Status = "finished"
    seconds: float = 0.0
    space: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    configs: dict[int, TrainConfig] = field(default_factory=dict)

    @property
    def front(self) -> list[int]:
        """Numbers of the trials that none is better than in every objective."""
        return pareto_front(self.trials, [direction for _, direction in self.objectives])

    @property
    def device_hours(self) -> float:
        return sum(row.device_seconds or 0.0 for row in self.trials) / 3600

    def to_json(self) -> dict[str, Any]:
        """As it stands in trials.json."""
        return {
            "version": VERSION,
            "study": self.study,
            "status": self.status,
            "metric": self.metric,
            "direction": "maximize",
            "objectives": [{"name": name, "direction": direction} for name, direction in self.objectives],
            "seconds": self.seconds,
            "device_hours": self.device_hours,
            "best": self.best_trial.number if self.best_trial else None,
            "front": self.front,
            "importances": self.importances,
            "space": self.space,
            **self.about,
            "trials": [row.to_json() for row in self.trials],
        }


def ranked(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """Complete trials, the highest score first; of equals the earlier."""
    complete = [row for row in rows if row.state == "complete" and row.value is not None]
    return sorted(complete, key=lambda row: (-(row.value or 0.0), row.number))


def pareto_front(rows: Sequence[TrialRow], directions: Sequence[str]) -> list[int]:
    """Complete trials that no other beats: as good in every objective and better in one."""
    signs = [1.0 if direction == "maximize" else -1.0 for direction in directions]
    points = {
        row.number: tuple(sign * value for sign, value in zip(signs, row.values, strict=True))
        for row in rows
        if row.state == "complete"
    }
    return undominated(points)


def undominated(points: Mapping[int, Sequence[float]]) -> list[int]:
    """Keys of the points that no other is as good as in every coordinate and better than in one; more is
    better.
    """
    return [
        key for key, point in points.items() if not any(_beats(other, point) for other in points.values())
    ]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)
