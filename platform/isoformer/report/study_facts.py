"""What can be said from a `Study`: best so far, against cost, by variant; the Pareto front; its parameters.

Plain functions over trials; the page and its figures draw what they return.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from isoformer.report.collect import finite
from isoformer.report.study import Parameter, Study, Trial
from isoformer.sweep.results import undominated


def best_so_far(study: Study) -> list[tuple[int, float]]:
    """The best completed score after each trial that has a score, by number."""
    scored = sorted((t for t in study.trials if t.score is not None), key=lambda t: t.number)
    return [(trial.number, best) for trial, best in _running_best(scored, study.sign)]


def best_against_cost(study: Study, trials: Iterable[Trial]) -> list[tuple[float, float]]:
    """(seconds spent by then, best completed score by then) in the order in which trials ended.

    A trial whose end is not known comes after those whose end is, by number.
    """
    in_order = sorted(trials, key=lambda t: (t.ended is None, t.ended or 0.0, t.number))
    spent = 0.0
    seconds = {}
    for trial in in_order:
        spent += trial.cost_seconds
        seconds[trial.number] = spent
    return [(seconds[trial.number], best) for trial, best in _running_best(in_order, study.sign)]


def _running_best(trials: Iterable[Trial], sign: int) -> list[tuple[Trial, float]]:
    best: float | None = None
    line = []
    for trial in trials:
        score = trial.score if trial.state == "complete" else None
        if score is not None and (best is None or sign * score > sign * best):
            best = score
        if best is not None:
            line.append((trial, best))
    return line


@dataclass(frozen=True)
class Variant:
    """The trials of one choice of `Study.variants`."""

    name: str
    trials: tuple[Trial, ...]
    best: float | None
    median: float | None
    seconds: float

    @property
    def complete(self) -> int:
        return sum(trial.state == "complete" for trial in self.trials)


def variants(study: Study) -> list[Variant]:
    """One a choice, in the order of the space; empty where the study compares none."""
    if study.variants is None:
        return []
    groups: dict[str, list[Trial]] = {name: [] for name in categories(study, study.variants)}
    for trial in study.trials:
        if study.variants in trial.params:
            groups.setdefault(shown_choice(trial.params[study.variants]), []).append(trial)
    return [_variant(study, name, trials) for name, trials in groups.items() if trials]


def _variant(study: Study, name: str, trials: Sequence[Trial]) -> Variant:
    scores = [t.score for t in trials if t.state == "complete" and t.score is not None]
    best = max(scores, key=lambda score: study.sign * score, default=None)
    median = statistics.median(scores) if scores else None
    return Variant(name, tuple(trials), best, median, sum(trial.cost_seconds for trial in trials))


def is_numeric(study: Study, name: str) -> bool:
    """Whether a parameter is a range; one that the space says nothing about, whether its values are."""
    known = study.space.get(name, Parameter())
    if known.choices or known.labels:
        return False
    values = [trial.params[name] for trial in study.trials if name in trial.params]
    return bool(values) and all(finite(value) and not isinstance(value, bool) for value in values)


def categories(study: Study, name: str) -> list[str]:
    """A parameter's labels in the order of the space, then what only trials have."""
    known = study.space.get(name, Parameter())
    seen = [trial.params[name] for trial in study.trials if name in trial.params]
    stated = known.labels or [one for one in known.choices if not isinstance(one, dict)]
    return list(dict.fromkeys(shown_choice(one) for one in [*stated, *seen]))


def shown_choice(value: Any) -> str:
    """A choice as the pages write it: true as yes, none as null, a list joined."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "yes", False: "no"}[value]
    if isinstance(value, dict):
        return " ".join(map(str, value.values()))
    if isinstance(value, list | tuple):
        return "+".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def pareto_front(study: Study) -> list[Trial]:
    """Completed trials that no other beats in one objective without losing in the other, by the first
    objective, best first. Of equal ones all are on it. Empty where there are not two objectives.
    """
    if len(study.targets) < 2:
        return []
    first, second = (objective.sign for objective in study.targets[:2])
    trials = [trial for trial in study.trials if both(trial)]
    points = {place: (first * p[0], second * p[1]) for place, t in enumerate(trials) if (p := both(t))}
    best_first = sorted(undominated(points), key=lambda place: (-points[place][0], trials[place].number))
    return [trials[place] for place in best_first]


def both(trial: Trial) -> tuple[float, float] | None:
    """The two objectives of a completed trial where it has them."""
    if trial.state != "complete" or len(trial.values) < 2:
        return None
    first, second = trial.values[:2]
    return (float(first), float(second)) if finite(first) and finite(second) else None  # type: ignore[arg-type]
