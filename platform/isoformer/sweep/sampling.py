"""Draw the values of the next trial.

The sampler is Optuna's, made anew for each trial from (seed, number) and shown a history in memory. In a
repeatable sweep the history of trial n are the trials before n - lag, all of them ended, and those between as
running ones (the constant liar keeps parallel trials apart); nothing depends on which of them was faster.
With `variants`, a trial gets its variant in turn and is drawn from trials of that variant alone: each has
the same budget and is searched for itself.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from isoformer.errors import ConfigError
from isoformer.sweep.population import Population
from isoformer.sweep.space import Choice, SearchSpace

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from isoformer.sweep.config import SweepConfig

LAG_PER_SLOT: Final = 2
"""Trials that one which is drawn does not know the results of, per trial that runs at once: a slow one holds
up the others only when it takes longer than this many of theirs."""


@dataclass(frozen=True)
class Drawn:
    """Values as the study holds them, and as they edit a configuration; the trial that it goes on from."""

    params: dict[str, Any]
    values: dict[str, Choice]
    distributions: dict[str, BaseDistribution]
    sampler_state: dict[str, Any] = field(default_factory=dict)
    parent: int | None = None


class Drawing:
    """Draws trial after trial. `earlier`: ended trials of other studies, shown as if they were this one's.

    `queued` are values to begin with, a mapping a trial; what one leaves out is drawn. With more than one
    variant they take turns with the variants. `lag` 0: not repeatable, all that is known is shown.
    """

    def __init__(
        self,
        space: SearchSpace,
        config: SweepConfig,
        *,
        lag: int,
        variants: str | None = None,
        earlier: Sequence[FrozenTrial] = (),
        queued: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.space, self.config, self.lag, self.variants = space, config, lag, variants
        self.earlier, self.queued = list(earlier), list(queued)
        self._grid = list(grid(space)) if config.sampler == "grid" else None
        self.population = Population.of(config, space)

    @property
    def limit(self) -> int | None:
        """How many different trials there are; None where there is no end of them."""
        return None if self._grid is None else len(self._grid)

    def is_ready(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether all has ended that the next trial is drawn from."""
        if self.population is not None:
            return self.population.is_ready(trials)
        horizon = len(trials) - self.lag
        return self.lag == 0 or all(trial.state.is_finished() for trial in trials[: max(0, horizon)])

    def visible(
        self, trials: Sequence[FrozenTrial], number: int, variant: object = None
    ) -> list[FrozenTrial]:
        """The ended trials that trial `number` is drawn from and compared with."""
        horizon = number - self.lag if self.lag else len(trials)
        return [
            trial
            for trial in trials[: max(0, horizon)]
            if trial.state.is_finished()
            and trial.number != number
            and (self.variants is None or trial.params.get(self.variants) == variant)
        ]

    def next(
        self, trials: Sequence[FrozenTrial], *, attempt: int = 0, fixed: Mapping[str, Any] | None = None
    ) -> Drawn:
        """The values of trial number `len(trials)`. `attempt` above 0 draws others in their place."""
        number = len(trials)
        child = self.population.child(trials, number) if self.population is not None else None
        given = {**self._given(number), **(child.params if child else {}), **(fixed or {})}
        variant = given.get(self.variants) if self.variants else None
        seen = self.visible(trials, number, variant)
        known = {trial.number for trial in seen}
        hidden = [
            _as_running(trial)
            for trial in trials
            if trial.number not in known
            and (self.variants is None or trial.params.get(self.variants) == variant)
        ]
        earlier = [t for t in self.earlier if not self.variants or t.params.get(self.variants) == variant]
        drawn = self._drawn([*earlier, *seen, *hidden], given, number, attempt)
        return replace(drawn, parent=child.parent) if child is not None else drawn

    def _drawn(
        self, history: Sequence[FrozenTrial], given: Mapping[str, Any], number: int, attempt: int
    ) -> Drawn:
        import optuna

        seed = int(np.random.SeedSequence([self.config.seed, number, attempt]).generate_state(1)[0])
        with warnings.catch_warnings(), _quiet_optuna():
            warnings.simplefilter("ignore")  # samplers warn that they are experimental
            sampler = new_sampler(self.config, seed, self._startup_trials)
            study = optuna.create_study(directions=list(self.config.directions), sampler=sampler)
            study.add_trials(history)
            if given:
                study.enqueue_trial(dict(given))
            trial = study.ask()
            values = self.space.draw(trial)
            frozen = study.get_trials(deepcopy=False)[-1]
        state = {name: value for name, value in frozen.system_attrs.items() if name != "fixed_params"}
        return Drawn(dict(frozen.params), values, dict(frozen.distributions), state)

    @property
    def _startup_trials(self) -> int:
        """Random ones before a model of the scores is worth something: a quarter of the budget, 4 to 10."""
        shares = 1 if self.variants is None else len(self.space.root[self.variants].choices)
        return max(4, min(10, self.config.trials // shares // 4))

    def _given(self, number: int) -> dict[str, Any]:
        """What is not drawn: a point of the grid, queued values, a variant in its turn."""
        if self._grid is not None:
            return dict(self._grid[number])
        given: dict[str, Any] = dict(self.queued[number]) if number < len(self.queued) else {}
        if self.variants is not None and self.variants not in given:
            labels = list(self.space.root[self.variants].by_label)
            given[self.variants] = labels[number % len(labels)]
        return given


def new_sampler(config: SweepConfig, seed: int, startup_trials: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler of that name."""
    from optuna import samplers

    if config.sampler in ("random", "grid"):
        return samplers.RandomSampler(seed=seed)
    if config.sampler == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=startup_trials, warn_independent_sampling=False)
    if config.sampler == "cmaes":
        return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    if config.sampler == "nsga2":
        population = max(8, min(50, config.trials // 5))
        return samplers.NSGAIISampler(seed=seed, population_size=population)
    return samplers.TPESampler(
        seed=seed, n_startup_trials=startup_trials, constant_liar=True, multivariate=True, group=True
    )


def grid(space: SearchSpace) -> Iterator[dict[str, Any]]:
    """Every combination of choices and of the `points` of ranges, by label. ConfigError where a range has
    none.
    """
    endless = [name for name, one in space.root.items() if not one.choices and one.points is None]
    if endless:
        raise ConfigError(
            f"sampler grid: {', '.join(endless)} of the search space: a range needs points, as points: 5"
        )
    yield from space.combinations(by_label=True)


def require_variants(space: SearchSpace, variants: str | None) -> None:
    """ConfigError where `variants` is no unconditional parameter with choices."""
    if variants is None:
        return
    parameter = space.root.get(variants)
    if parameter is None or not parameter.choices or parameter.when:
        fitting = [name for name, one in space.root.items() if one.choices and not one.when]
        raise ConfigError(
            f"sweep.variants {variants!r}: must be a parameter with choices and without conditions; "
            f"allowed: {', '.join(fitting) or 'none is there'}"
        )


def _as_running(trial: FrozenTrial) -> FrozenTrial:
    """The trial as a sampler sees one that has not ended."""
    from optuna.trial import TrialState, create_trial

    return create_trial(
        state=TrialState.RUNNING,
        params=trial.params,
        distributions=trial.distributions,
        system_attrs=trial.system_attrs,
    )


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Samplers log what they fall back to for conditional parameters, once a draw."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
