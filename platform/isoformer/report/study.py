"""A study as its sweep left it: trials.json and finals.json, checked.

In: the storage of a root and a study's name. Out: a `Study`. Keys that older files do not have are empty or
None, never made up. `study_facts` says what follows from it; `sweep_page` and its figures show it.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from isoformer.errors import StorageError
from isoformer.report.collect import finite
from isoformer.storage import Storage

M = TypeVar("M", bound=BaseModel)


class _Lenient(BaseModel):
    """Null and NaN stand for the default; keys of a later version are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _unknown_is_the_default(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {
            key: value
            for key, value in data.items()
            if value is not None and not (isinstance(value, float) and math.isnan(value))
        }


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
    budget_used: str = ""
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
