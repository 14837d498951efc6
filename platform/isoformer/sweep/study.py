"""The Optuna study of a sweep: a database that the Optuna tools open, the only truth about what is done.

A trial is done when the study says COMPLETE, PRUNED or FAIL. One that the study calls RUNNING when a driver
opens it was left by another that is gone: it is gone on with, under its own number and with its own values.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from isoformer.config import without_password
from isoformer.errors import FingerprintError
from isoformer.sweep.database import answering, open_storage_at

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from isoformer.sweep.config import SweepConfig

Direction = Literal["maximize", "minimize"]
TrialState = Literal["complete", "pruned", "failed", "running", "waiting"]
STATES: dict[str, TrialState] = {
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}
MOST_CHOICES: Final = 32
"""Of a parameter whose importance is assessed."""


@dataclass(frozen=True)
class TrialRow:
    """One trial as tables and reports show it. `value` is its validation score; of a pruned one, its last.

    `values` has an objective each, once it is complete; `curve` is [epoch, score of the kept model];
    `tissues` the R² on validation genes; `training_seconds` are `seconds` without reporting; `parent` is
    the trial whose model it went on from; `started` and `ended` are seconds since 1970.
    """

    number: int
    state: TrialState
    value: float | None
    params: dict[str, Any]
    epochs: int
    seconds: float | None
    error: str = ""
    run: str = ""
    values: list[float] = field(default_factory=list)
    device_seconds: float | None = None
    training_seconds: float | None = None
    parameters: int | None = None
    started: float | None = None
    ended: float | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)
    tissues: dict[str, float] = field(default_factory=dict)
    parent: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Study:
    """The study of one driver: what it knows in memory is what the database says; no other writes to it.

    `require_held` is asked before every write; see `only_driver`.
    """

    def __init__(
        self,
        storage: optuna.storages.RDBStorage,
        name: str,
        directions: Sequence[Direction],
        require_held: Callable[[], None] = lambda: None,
    ) -> None:
        import optuna

        self.storage, self.name, self.directions = storage, name, tuple(directions)
        self._require_held = require_held
        optuna.create_study(
            storage=storage, study_name=name, directions=list(directions), load_if_exists=True
        )
        self._id = storage.get_study_id_from_name(name)
        self.attributes: dict[str, Any] = dict(storage.get_study_user_attrs(self._id))
        self.trials: list[FrozenTrial] = storage.get_all_trials(self._id, deepcopy=True)

    def set_attribute(self, name: str, value: object) -> None:
        """Of the whole study."""
        with self._written():
            self.storage.set_study_user_attr(self._id, name, value)
        self.attributes[name] = value

    def begin(
        self,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        *,
        run_prefix: str,
        sampler_state: Mapping[str, Any] | None = None,
        parent: int | None = None,
    ) -> FrozenTrial:
        """A new running trial, put into the database in one piece."""
        from optuna.trial import TrialState, create_trial

        trial = create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions=dict(distributions),
            user_attrs={
                "run": f"{run_prefix}-{len(self.trials):05d}",
                **({} if parent is None else {"parent": parent}),
            },
            system_attrs=dict(sampler_state or {}),
        )
        trial.number = len(self.trials)
        with self._written():
            trial._trial_id = self.storage.create_new_trial(self._id, trial)
        self.trials.append(trial)
        return trial

    def report(self, trial: FrozenTrial, epoch: int, score: float) -> None:
        """An epoch's score; one that the study has already changes nothing."""
        if trial.intermediate_values.get(epoch) != score:
            with self._written():
                self.storage.set_trial_intermediate_value(trial._trial_id, epoch, score)
            trial.intermediate_values[epoch] = score

    def describe(self, trial: FrozenTrial, **attributes: object) -> None:
        """Set what a trial's row shows beside its values."""
        for name, value in attributes.items():
            with self._written():
                self.storage.set_trial_user_attr(trial._trial_id, name, value)
            trial.user_attrs[name] = value

    def end(self, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None = None) -> None:
        """Close a trial for good."""
        import optuna

        found = next(one for one in optuna.trial.TrialState if STATES[one.name] == state)
        kept = list(values) if values is not None else None
        with self._written():
            self.storage.set_trial_state_values(trial._trial_id, found, kept)
            trial.datetime_complete = self.storage.get_trial(trial._trial_id).datetime_complete
        trial.state, trial.values = found, kept

    @contextmanager
    def _written(self) -> Iterator[None]:
        self._require_held()
        with answering(str(self.storage.engine.url)):
            yield

    def rows(self) -> list[TrialRow]:
        """Every trial, in order."""
        return [row_of(trial) for trial in self.trials]

    @property
    def done(self) -> int:
        """Trials that need not be run again."""
        return sum(trial.state.is_finished() for trial in self.trials)

    @property
    def left_running(self) -> list[FrozenTrial]:
        """Trials that nobody has closed."""
        return [trial for trial in self.trials if not trial.state.is_finished()]

    @property
    def device_hours(self) -> float:
        """Of all trials, ended or not."""
        return sum(trial.user_attrs.get("device_seconds") or 0.0 for trial in self.trials) / 3600

    def require_made_from(self, made_from: Mapping[str, str], where: str) -> None:
        """FingerprintError where the study was made with another space, metric or data."""
        stored = self.attributes.get("made_from")
        if stored is None:
            self.set_attribute("made_from", dict(made_from))
            return
        different = sorted(name for name in made_from if stored.get(name) != made_from[name])
        if different:
            theirs, ours = ({name: source.get(name) for name in different} for source in (stored, made_from))
            raise FingerprintError(
                f"{where}: study {self.name!r} was made with another {', '.join(different)}: "
                f"{_shortened(theirs)}, now {_shortened(ours)}; take another study name"
            )


def open_study(
    url: str,
    name: str,
    config: SweepConfig,
    *,
    made_from: Mapping[str, str],
    require_held: Callable[[], None] = lambda: None,
) -> Study:
    """Open or create the study. An existing one must have the same `made_from` (space, data, objectives)."""
    with answering(url):
        study = Study(open_storage_at(url), name, config.directions, require_held)
    study.require_made_from(made_from, without_password(url))
    return study


def importances(study: Study) -> dict[str, float]:
    """Share of the score's variance that each parameter explains (fANOVA); empty with fewer than four scores.

    Only parameters that every completed trial has can be assessed: conditional ones are left out, and so are
    those with more choices than a forest can be split by in a reasonable time.
    """
    import optuna
    from optuna.distributions import CategoricalDistribution

    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    if len(complete) < 4 or len({trial.values[0] for trial in complete}) < 2:
        return {}
    copied = optuna.create_study(directions=list(study.directions))
    copied.add_trials(complete)
    common = set.intersection(*(set(trial.params) for trial in complete))
    assessed = [
        name
        for name, kind in complete[0].distributions.items()
        if name in common
        and not (isinstance(kind, CategoricalDistribution) and len(kind.choices) > MOST_CHOICES)
    ]
    found = optuna.importance.get_param_importances(
        copied,
        evaluator=optuna.importance.FanovaImportanceEvaluator(n_trees=32, seed=0),
        params=assessed,
        target=lambda trial: trial.values[0],
    )
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def open_study_line(database: Path | str) -> str:
    """The command that opens the study, a file or a URL, in Optuna's own dashboard (a separate package)."""
    url = database if isinstance(database, str) else f"sqlite:///{database.resolve()}"
    return f"optuna-dashboard {without_password(url)}"


def row_of(trial: FrozenTrial) -> TrialRow:
    """The trial as a row."""
    attributes, curve = trial.user_attrs, sorted(trial.intermediate_values.items())
    values = list(trial.values or [])
    return TrialRow(
        number=trial.number,
        state=STATES[trial.state.name],
        value=values[0] if values else (curve[-1][1] if curve else None),
        values=values,
        params=dict(trial.params),
        epochs=len(curve),
        seconds=attributes.get("seconds"),
        device_seconds=attributes.get("device_seconds"),
        training_seconds=attributes.get("training_seconds"),
        parameters=attributes.get("parameters"),
        error=attributes.get("error", ""),
        run=attributes.get("run", ""),
        started=_timestamp(trial.datetime_start),
        ended=_timestamp(trial.datetime_complete),
        curve=curve,
        tissues=json.loads(attributes.get("tissues", "{}")),
        parent=attributes.get("parent"),
    )


def _timestamp(moment: datetime | None) -> float | None:
    return None if moment is None else time.mktime(moment.timetuple()) + moment.microsecond / 1e6


def _shortened(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:199]}…"
