"""Population-based training as trials with parents (Jaderberg et al. 2017, "Population based training of
neural networks").

Trials come in generations of `population`. One of the first generation is drawn as usual; each later one
trains on from the weights and optimiser of a parent: its own predecessor, or, where that one is in the worst
quarter of its generation, one of the best quarter, with what may change while a model trains perturbed. So
every step is a trial of the study: it is resumed, repeated and shown like any other, and needs no state of
its own.

Only what leaves the weights as they are can change: see `MUTABLE`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from isoformer.errors import ConfigError
from isoformer.sweep.space import Parameter, SearchSpace

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from isoformer.sweep.config import SweepConfig
    from isoformer.training.config import TrainConfig

MUTABLE: Final = ("learning_rate", "weight_decay", "gradient_clip", "model.dropout", "model.fusion_dropout")
"""Paths in the training configuration that may differ between a model and the one it goes on from."""
QUARTER: Final = 4
FACTORS: Final = (0.8, 1.25)
RESAMPLE: Final = 0.25


@dataclass(frozen=True)
class Child:
    """What a trial of a later generation is: its parent's number, and its values by label."""

    parent: int
    params: dict[str, Any]


@dataclass(frozen=True)
class Population:
    """The generations of a sweep. `epochs` are of one generation."""

    space: SearchSpace
    size: int
    epochs: int
    seed: int

    @classmethod
    def of(cls, config: SweepConfig, space: SearchSpace) -> Population | None:
        """Of a sweep with scheduler pbt, else None. ConfigError where nothing in the space may change."""
        if config.scheduler != "pbt":
            return None
        if not any(parameter.path in MUTABLE for parameter in space.root.values()):
            raise ConfigError(
                f"sweep.scheduler pbt changes what can change while a model trains ({', '.join(MUTABLE)}); "
                "the search space has none of it"
            )
        return cls(space, config.population, config.generation_epochs, config.seed)

    def is_ready(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether every trial of the generation before the next trial's has ended."""
        before = len(trials) // self.size * self.size
        return all(trial.state.is_finished() for trial in trials[:before])

    def epochs_of(self, number: int) -> int:
        """Of the model of a trial, with its parents'."""
        return (number // self.size + 1) * self.epochs

    def child(self, trials: Sequence[FrozenTrial], number: int) -> Child | None:
        """The next trial's parent and values; None in the first generation, or where none before has a
        score.
        """
        generation = number // self.size
        before = [t for t in trials[(generation - 1) * self.size : generation * self.size] if generation]
        best_first = sorted(
            (t for t in before if _score(t) > -math.inf), key=lambda t: (-_score(t), t.number)
        )
        if not best_first:
            return None
        random = np.random.default_rng([self.seed, number])
        count = max(1, len(before) // QUARTER)
        own = trials[number - self.size]
        is_weak = own not in best_first or (len(best_first) > count and own in best_first[-count:])
        if not is_weak:
            return Child(own.number, dict(own.params))
        parent = best_first[int(random.integers(min(count, len(best_first))))]
        return Child(parent.number, self._perturbed(parent.params, random))

    def _perturbed(self, params: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
        return {
            name: _changed(self.space.root[name], value, random)
            if self.space.root[name].path in MUTABLE
            else value
            for name, value in params.items()
        }


def require_constant_rate(base: TrainConfig) -> None:
    """ConfigError where the learning rate follows the length of a training, which pbt does not know."""
    if base.schedule != "constant":
        raise ConfigError(f"sweep.scheduler pbt needs train.schedule constant, not {base.schedule}")


def _score(trial: FrozenTrial) -> float:
    return trial.values[0] if trial.state.name == "COMPLETE" else -math.inf


def _changed(parameter: Parameter, value: Any, random: np.random.Generator) -> Any:
    """A neighbour of the value, or, one time in four, any other of the parameter's."""
    is_anew = random.random() < RESAMPLE
    if parameter.choices:
        labels = list(parameter.by_label)
        place = labels.index(value) + (1 if random.random() < 0.5 else -1)
        anywhere = int(random.integers(len(labels)))
        return labels[anywhere if is_anew else min(max(place, 0), len(labels) - 1)]
    assert parameter.low is not None and parameter.high is not None
    low, high = float(parameter.low), float(parameter.high)
    if is_anew and parameter.log:
        found = math.exp(random.uniform(math.log(low), math.log(high)))
    elif is_anew:
        found = random.uniform(low, high)
    else:
        found = value * FACTORS[int(random.integers(2))]
    found = min(max(found, low), high)
    return round(found) if parameter.is_whole else found
