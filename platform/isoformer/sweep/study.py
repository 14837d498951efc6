"""The Optuna study of a sweep: a SQLite file that the Optuna tools open, the only truth about what is done.

A trial is done when the study says COMPLETE, PRUNED or FAIL. One that the study still calls RUNNING when
nobody holds the study's lock was interrupted: it is closed as failed with the mark `interrupted` and its
parameters are queued again, so a resumed sweep repeats no finished trial and loses none.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from isoformer.errors import FingerprintError, StorageError

if TYPE_CHECKING:
    import optuna

TrialState = Literal["complete", "pruned", "failed", "interrupted", "running", "waiting"]
Sampler = Literal["tpe", "random"]
DONE = frozenset({"complete", "pruned", "failed"})


@dataclass(frozen=True)
class TrialRow:
    """One trial as tables and reports show it. `value` is its validation score; of a pruned one, its last."""

    number: int
    state: TrialState
    value: float | None
    params: dict[str, Any]
    epochs: int
    seconds: float | None
    error: str = ""
    run: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def open_study(
    path: Path, name: str, *, seed: int, sampler: Sampler, made_from: Mapping[str, str]
) -> optuna.Study:
    """Open or create the study. An existing one must have the same `made_from` (space, data, metric)."""
    import optuna

    _quiet(optuna)
    path.parent.mkdir(parents=True, exist_ok=True)
    url = f"sqlite:///{path}"
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 30}})
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    _check_made_from(study, path, made_from)
    study.sampler = _sampler(sampler, seed + len(study.trials))
    return study


def queue_interrupted(study: optuna.Study) -> list[TrialRow]:
    """Close trials that a dead driver left running and queue their parameters again."""
    import optuna

    interrupted = [row for row in trial_rows(study) if row.state == "running"]
    marked = [*study.user_attrs.get("interrupted", []), *(row.number for row in interrupted)]
    study.set_user_attr("interrupted", marked)
    for row in interrupted:
        study.tell(row.number, state=optuna.trial.TrialState.FAIL)
        if row.params:
            study.enqueue_trial(row.params, user_attrs={"repeats": row.number})
    return interrupted


def trial_rows(study: optuna.Study) -> list[TrialRow]:
    """Every trial of the study, in order."""
    interrupted = set(study.user_attrs.get("interrupted", []))
    return [_row(trial, interrupted) for trial in study.get_trials(deepcopy=False)]


def count_done(study: optuna.Study) -> int:
    """Trials that need not be run again."""
    return sum(row.state in DONE for row in trial_rows(study))


def importances(study: optuna.Study) -> dict[str, float]:
    """Share of the score's variance that each parameter explains (fANOVA); empty with fewer than four scores.

    Only parameters that every completed trial has can be assessed: conditional ones are left out.
    """
    import optuna

    completed = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    if len(completed) < 4 or len({trial.value for trial in completed}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def open_study_line(path: Path) -> str:
    """The command that opens the study in Optuna's own dashboard (a separate package)."""
    return f"optuna-dashboard sqlite:///{path.resolve()}"


def _row(trial: optuna.trial.FrozenTrial, interrupted: set[int]) -> TrialRow:
    attributes = trial.user_attrs
    state: dict[str, TrialState] = {
        "COMPLETE": "complete",
        "PRUNED": "pruned",
        "FAIL": "failed",
        "RUNNING": "running",
        "WAITING": "waiting",
    }
    return TrialRow(
        number=trial.number,
        state="interrupted" if _is_interrupted(trial, interrupted) else state[trial.state.name],
        value=trial.value if trial.value is not None else _last_intermediate(trial),
        params=dict(trial.params),
        epochs=len(trial.intermediate_values),
        seconds=attributes.get("seconds"),
        error=attributes.get("error", ""),
        run=attributes.get("run", ""),
    )


def _is_interrupted(trial: optuna.trial.FrozenTrial, interrupted: set[int]) -> bool:
    return trial.number in interrupted and trial.state.name == "FAIL"


def _last_intermediate(trial: optuna.trial.FrozenTrial) -> float | None:
    values = trial.intermediate_values
    return values[max(values)] if values else None


def _check_made_from(study: optuna.Study, path: Path, made_from: Mapping[str, str]) -> None:
    stored = study.user_attrs.get("made_from")
    if stored is None:
        study.set_user_attr("made_from", dict(made_from))
        return
    different = sorted(name for name in made_from if stored.get(name) != made_from[name])
    if different:
        theirs, ours = ({name: source.get(name) for name in different} for source in (stored, made_from))
        raise FingerprintError(
            f"{path}: study {study.study_name!r} was made with another {', '.join(different)}: "
            f"{_shortened(theirs)}, now {_shortened(ours)}; take another study name"
        )


def _sampler(name: Sampler, seed: int) -> optuna.samplers.BaseSampler:
    """A resumed study gets another seed: the same one would draw the first trials' values again."""
    import optuna

    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with (
        warnings.catch_warnings()
    ):  # constant_liar, which keeps parallel trials apart, is called experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def _quiet(optuna_module: Any) -> None:
    optuna_module.logging.set_verbosity(optuna_module.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _shortened(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:199]}…"


def require_new(path: Path, *, resume: bool) -> None:
    """StorageError where a study exists and the caller did not ask to go on with it."""
    if path.exists() and not resume:
        raise StorageError(f"{path} exists: go on with it (--resume), or take another study name")
