"""A study as its sweep left it: trials.json and finals.json, checked, and what can be said from them.

In: the storage of a root and a study's name. Out: a `Study`. Keys that older files do not have are empty or
None, never made up. The page (`sweep_page`) and its figures read this and nothing else.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from isoformer.errors import StorageError
from isoformer.report.collect import finite
from isoformer.storage import Storage

M = TypeVar("M", bound=BaseModel)


class _Lenient(BaseModel):
    """Null stands for the default; keys of a later version are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None}


class Trial(_Lenient):
    """One trial; `values` in the order of the objectives."""

    number: int
    state: str
    value: float | None = None
    values: tuple[float | None, ...] = ()
    params: dict[str, Any] = Field(default_factory=dict)
    epochs: int = 0
    seconds: float | None = None
    device_seconds: float | None = None
    parameters: int | None = None
    error: str = ""
    run: str = ""
    started: float | None = None
    ended: float | None = None
    curve: tuple[tuple[float, float | None], ...] = ()
    tissues: dict[str, float | None] = Field(default_factory=dict)

    @property
    def score(self) -> float | None:
        """The first objective where it is a number."""
        first = self.values[0] if self.values else self.value
        return first if finite(first) else None

    @property
    def cost_seconds(self) -> float:
        """On its devices; of older files, as long as it took."""
        return next((float(s) for s in (self.device_seconds, self.seconds) if finite(s) and s), 0.0)


class Objective(_Lenient):
    name: str
    direction: str = "maximize"

    @property
    def sign(self) -> int:
        """Times this, more is better."""
        return -1 if self.direction == "minimize" else 1


class Parameter(_Lenient):
    """One searched thing: choices with labels, or a range."""

    choices: tuple[Any, ...] = ()
    labels: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False
    when: dict[str, Any] = Field(default_factory=dict)


class SeedRun(_Lenient):
    run: str
    seed: int
    val: dict[str, float | None] = Field(default_factory=dict)
    test: dict[str, float | None] = Field(default_factory=dict)


class FinalModel(_Lenient):
    """A configuration trained again with several seeds and scored on the test genes."""

    rank: int
    trial: int
    params: dict[str, Any] = Field(default_factory=dict)
    runs: tuple[SeedRun, ...] = ()
    test_mean: dict[str, float | None] = Field(default_factory=dict)
    test_sd: dict[str, float | None] = Field(default_factory=dict)


class Finals(_Lenient):
    models: tuple[FinalModel, ...] = ()


class Study(_Lenient):
    """trials.json, with the final models where there are some."""

    study: str
    metric: str = "val_r2"
    direction: str = "maximize"
    objectives: tuple[Objective, ...] = ()
    status: str = ""
    seconds: float | None = None
    device_hours: float | None = None
    budget: dict[str, float | None] = Field(default_factory=dict)
    best: int | None = None
    front: tuple[int, ...] = ()
    importances: dict[str, float] = Field(default_factory=dict)
    variants: str | None = None
    space: dict[str, Parameter] = Field(default_factory=dict)
    sampler: str = ""
    scheduler: str = ""
    seed: int | None = None
    dataset: dict[str, Any] = Field(default_factory=dict)
    storage: str = ""
    run: str = ""
    trials: tuple[Trial, ...] = ()
    finals: tuple[FinalModel, ...] = ()

    @property
    def targets(self) -> tuple[Objective, ...]:
        """The objectives; of older files, the one metric."""
        return self.objectives or (Objective(name=self.metric, direction=self.direction),)

    @property
    def sign(self) -> int:
        return self.targets[0].sign

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names as in the space, then what only trials have."""
        drawn = (name for trial in self.trials for name in trial.params)
        return tuple(dict.fromkeys([*self.space, *drawn]))

    @property
    def best_trial(self) -> Trial | None:
        return next((trial for trial in self.trials if trial.number == self.best), None)

    def in_state(self, state: str) -> list[Trial]:
        """Those with a score, unless they failed."""
        return [t for t in self.trials if t.state == state and (t.score is not None or state == "failed")]

    def ranked(self) -> list[Trial]:
        """Completed trials, best first."""
        return sorted(self.in_state("complete"), key=lambda t: (-self.sign * (t.score or 0.0), t.number))


def read_study(storage: Storage, study: str) -> Study:
    """trials.json with finals.json. StorageError where there is no such study, or a file cannot be read."""
    key = f"studies/{study}/trials.json"
    if not storage.exists(key):
        there = ", ".join(study_names(storage)) or "none"
        raise StorageError(f"{storage.uri}/{key}: there is no such study; there are: {there}")
    found = _parsed(Study, storage, key)
    finals = f"studies/{study}/finals.json"
    models = _parsed(Finals, storage, finals).models if storage.exists(finals) else ()
    return found.model_copy(update={"finals": models})


def study_names(storage: Storage) -> list[str]:
    """Studies that left a trials.json."""
    return sorted(key.split("/")[1] for key in storage.list("studies/") if key.endswith("/trials.json"))


def _parsed(model: type[M], storage: Storage, key: str) -> M:
    try:
        return model.model_validate_json(storage.read_bytes(key))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StorageError(f"{storage.uri}/{key}: cannot be read: {where}: {first['msg']}") from None


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
    scalars = [one for one in known.choices if isinstance(one, str | int | float | bool)]
    seen = [trial.params[name] for trial in study.trials if name in trial.params]
    stated = list(known.labels) or (scalars if len(scalars) == len(known.choices) else [])
    return list(dict.fromkeys(shown_choice(one) for one in [*stated, *seen]))


def shown_choice(value: Any) -> str:
    """A choice as the pages write it: true as yes, a list joined."""
    if isinstance(value, bool):
        return "yes" if value else "no"
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
    rated = [(first * pair[0], second * pair[1], trial) for trial in study.trials if (pair := both(trial))]
    rated.sort(key=lambda item: (-item[0], -item[1], item[2].number))
    front: list[tuple[float, float, Trial]] = []
    for one in rated:
        if not front or one[1] > front[-1][1] or one[:2] == front[-1][:2]:
            front.append(one)
    return [trial for _, _, trial in front]


def both(trial: Trial) -> tuple[float, float] | None:
    """The two objectives of a completed trial where it has them."""
    if trial.state != "complete" or len(trial.values) < 2:
        return None
    first, second = trial.values[:2]
    return (float(first), float(second)) if finite(first) and finite(second) else None  # type: ignore[arg-type]
