"""A search space as data: parameters that edit a training configuration, some only where others allow it.

    space:
      fusion:  {path: model.fusion, choices: [cross_attention, concat]}
      heads:   {path: model.heads, choices: [1, 2, 4], when: {fusion: [cross_attention]}}
      learning_rate: {path: learning_rate, low: 1.0e-4, high: 1.0e-2, log: true}

`SearchSpace.check` tries every combination of choices (and both ends of each range) on the configuration, so
that a sweep never starts that would fail halfway on a value that could have been refused at the door.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, RootModel, model_validator

from isoformer.config import FrozenConfig, build
from isoformer.errors import ConfigError

if TYPE_CHECKING:
    import optuna

    from isoformer.training.config import TrainConfig

Scalar = bool | int | float | str | None
Choice = Scalar | tuple[Scalar, ...] | dict[str, Scalar]
CHECKED_COMBINATIONS = 20_000
MOST_POINTS = 10_000
LARGEST = 1e15
"""Of a range: whole numbers up to it are exact, and so are shares of it."""


class Parameter(FrozenConfig):
    """One thing to search: `choices`, or a range from `low` to `high` (whole numbers where both are whole).

    `path` is where the value goes in the training configuration. With `when`, the parameter is drawn only
    where each named earlier parameter has one of the listed values; elsewhere the configuration keeps its
    own.
    """

    path: str
    choices: tuple[Choice, ...] = ()
    labels: tuple[str, ...] = Field(
        default=(), description="of the choices, in the study; null: made of them"
    )
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    points: int | None = Field(
        default=None, ge=2, le=MOST_POINTS, description="of a range that a grid tries, both ends with"
    )
    when: dict[str, tuple[Choice, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _choices_or_range(self) -> Self:
        has_range = self.low is not None and self.high is not None
        if bool(self.choices) == has_range or (self.low is None) != (self.high is None):
            raise ValueError("give either choices, or both low and high")
        if self.low is not None and self.high is not None:
            if not self.low < self.high:
                raise ValueError(f"low {self.low} must be below high {self.high}")
            if max(abs(self.low), abs(self.high)) > LARGEST:
                raise ValueError(f"low and high must be within ±{LARGEST:g}")
            if self.log and self.low <= 0:
                raise ValueError(f"log needs low above 0, got {self.low}")
        if self.points is not None and self.choices:
            raise ValueError("points are of a range; choices are a grid's points already")
        if self.labels and len(self.labels) != len(self.choices):
            raise ValueError(f"{len(self.labels)} labels for {len(self.choices)} choices")
        labels: list[Scalar] = list(self.labels) or [label(choice) for choice in self.choices]
        if len(set(labels)) != len(labels):
            raise ValueError(f"choices must differ, got {labels}")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether the range is of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def by_label(self) -> dict[Scalar, Choice]:
        """Choices by the scalar that stands for each in the study."""
        return dict(zip(self.labels or map(label, self.choices), self.choices, strict=True))

    def draw(self, name: str, trial: optuna.trial.BaseTrial) -> Choice:
        """Ask the study for a value."""
        if self.choices:
            return self.by_label[trial.suggest_categorical(name, list(self.by_label))]
        assert self.low is not None and self.high is not None
        if self.is_whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def corners(self) -> tuple[Choice, ...]:
        """The values that a check, or a grid, tries."""
        return self.choices or (self._spread() if self.points else (self.low, self.high))

    def _spread(self) -> tuple[int | float, ...]:
        """`points` values from low to high, evenly (in the logarithm), whole where the range is."""
        assert self.low is not None and self.high is not None and self.points is not None
        shares = [place / (self.points - 1) for place in range(self.points)]
        if self.log:
            found = [self.low * (self.high / self.low) ** share for share in shares]
        else:
            found = [self.low + (self.high - self.low) * share for share in shares]
        exact = [self.low, *found[1:-1], self.high]
        return tuple(dict.fromkeys(round(value) if self.is_whole else value for value in exact))


class SearchSpace(RootModel[dict[str, Parameter]]):
    """Named parameters in the order they are drawn."""

    model_config = {"frozen": True}

    @model_validator(mode="after")
    def _conditions_name_earlier_parameters(self) -> Self:
        seen: dict[str, Parameter] = {}
        for name, parameter in self.root.items():
            for other, wanted in parameter.when.items():
                if other not in seen:
                    raise ValueError(
                        f"{name}: when names {other!r}, which is no earlier parameter ({list(seen)})"
                    )
                known = [label(choice) for choice in seen[other].choices]
                strangers = [label(value) for value in wanted if label(value) not in known]
                if strangers:
                    raise ValueError(f"{name}: when {other} is {strangers}, but its choices are {known}")
            seen[name] = parameter
        if not seen:
            raise ValueError("a search space needs at least one parameter")
        return self

    def draw(self, trial: optuna.trial.BaseTrial) -> dict[str, Choice]:
        """Values of the parameters that are active in this trial, by name."""
        values: dict[str, Choice] = {}
        for name, parameter in self.root.items():
            if _is_active(parameter, values):
                values[name] = parameter.draw(name, trial)
        return values

    def active(self, labels: Mapping[str, Any]) -> list[str]:
        """The parameters that are drawn where the earlier ones have these labels."""
        values: dict[str, Choice] = {}
        for name, parameter in self.root.items():
            if name in labels and _is_active(parameter, values):
                values[name] = labels[name]
        return [name for name, parameter in self.root.items() if _is_active(parameter, values)]

    def applied(self, base: TrainConfig, values: Mapping[str, Choice]) -> TrainConfig:
        """The training configuration with these values in place. ConfigError where it does not take them."""
        data = base.model_dump()
        for name, value in values.items():
            _put(data, self.root[name].path, value)
        shown = ", ".join(f"{name}={label(value)}" for name, value in values.items())
        return build(type(base), data, origin=f"search space ({shown})")

    def check(self, base: TrainConfig) -> int:
        """Try the combinations, return how many; ConfigError names the first that `base` does not take."""
        for name, parameter in self.root.items():
            _check_path(base, name, parameter.path)
        tried = 0
        for values in itertools.islice(self.combinations(), CHECKED_COMBINATIONS):
            self.applied(base, values)
            tried += 1
        return tried

    def combinations(self, *, by_label: bool = False) -> Iterator[dict[str, Any]]:
        """Every combination of choices with both ends (and the points) of ranges; choices by label where
        asked for.
        """
        yield from self._combinations(tuple(self.root), by_label)

    def _combinations(self, names: tuple[str, ...], by_label: bool) -> Iterator[dict[str, Any]]:
        if not names:
            yield {}
            return
        *earlier, last = names
        parameter = self.root[last]
        for values in self._combinations(tuple(earlier), by_label):
            if not _is_active(parameter, values):
                yield values
                continue
            for value in parameter.by_label if by_label and parameter.choices else parameter.corners():
                yield {**values, last: value}


def label(choice: Choice) -> str | int | float | bool | None:
    """How a choice stands in the study, which holds scalars only."""
    if isinstance(choice, dict):
        return " ".join(dict.fromkeys(_short_key(value) for value in choice.values()))
    return "+".join(str(part) for part in choice) if isinstance(choice, tuple) else choice


def key_parts(key: str) -> list[str]:
    """Name, weights, resolution, dtype, hash; a name may hold points of its own."""
    return key.rsplit(".", 4)


def _short_key(key: Scalar) -> str:
    """`esm2-tiny.1a2b3c4d.bins-16.f16.99aabbcc` → `esm2-tiny/bins-16`."""
    parts = key_parts(str(key))
    return f"{parts[0]}/{parts[2]}" if len(parts) >= 4 else str(key)


def _is_active(parameter: Parameter, values: Mapping[str, Choice]) -> bool:
    return all(
        other in values and label(values[other]) in [label(value) for value in wanted]
        for other, wanted in parameter.when.items()
    )


def _put(data: dict[str, Any], path: str, value: Choice) -> None:
    *parents, leaf = path.split(".")
    for parent in parents:
        data = data[parent]
    data[leaf] = value


def _check_path(base: TrainConfig, name: str, path: str) -> None:
    data: Any = base.model_dump()
    known: list[str] = []
    for part in path.split("."):
        known = sorted(data) if isinstance(data, dict) else []
        if not isinstance(data, dict) or part not in data:
            raise ConfigError(f"search space: {name}: path {path!r} is not in the training configuration; "
                              f"allowed here: {', '.join(known) or 'nothing below this'}")  # fmt: skip
        data = data[part]


def is_score(value: float | None) -> bool:
    """Whether a reported score can be compared."""
    return value is not None and math.isfinite(value)
