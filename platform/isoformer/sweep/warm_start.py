"""What earlier searches teach a new one: trials of other studies, and MLflow runs.

A study of the same data and metric is shown to the sampler as if its trials were this study's; they count for
no budget and appear in no result. Of any other study, and of MLflow runs, only values are taken: the best are
tried first here. What does not fit the space is left out and counted.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from isoformer.config import without_password
from isoformer.errors import StorageError
from isoformer.storage import Storage
from isoformer.sweep.database import is_file, open_storage_at
from isoformer.sweep.space import Parameter, SearchSpace
from isoformer.tracking import TrackingConfig

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from isoformer.sweep.config import SweepConfig
    from isoformer.sweep.study import Study

BEST_TAKEN: Final = 4
MLFLOW: Final = "mlflow:"

logger = logging.getLogger(__name__)


@dataclass
class WarmStart:
    """Trials for the sampler's eyes, values to try first, and how many were left out, by reason."""

    history: list[FrozenTrial] = field(default_factory=list)
    queued: list[dict[str, Any]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def earlier_trials(
    study: Study, config: SweepConfig, space: SearchSpace, storage: Storage, tracking: TrackingConfig
) -> WarmStart:
    """From every source in `config.warm_start`, in order. A study that is resumed is shown what it was begun
    with: no more trials of an earlier one than it had then, and the same values to try first.
    """
    found, counts = WarmStart(), study.attributes.get("warm_start_trials", {})
    for source in config.warm_start:
        if source.startswith(MLFLOW):
            _queue(found, space, _of_mlflow(source.removeprefix(MLFLOW), space, tracking))
            continue
        trials, same_data = _of_study(source, study, storage)
        name = without_password(source)
        trials = trials[: counts.get(name, len(trials))]
        counts = {**counts, name: len(trials)}
        if same_data:
            _show(found, space, trials, len(config.directions))
        else:
            best = sorted((t for t in trials if t.state.name == "COMPLETE"), key=lambda t: -t.values[0])
            for trial in best[:BEST_TAKEN]:
                _queue(found, space, trial.params)
    if config.warm_start:
        study.set_attribute("warm_start_trials", counts)
    found.queued = study.attributes.get("queued", found.queued)
    study.set_attribute("queued", found.queued)
    if found.left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in found.left_out.items())
        logger.warning("warm start: %d trials shown, left out: %s", len(found.history), reasons)
    return found


def _show(found: WarmStart, space: SearchSpace, trials: list[FrozenTrial], objectives: int) -> None:
    """Add ended trials whose values are all of this space."""
    from optuna.trial import create_trial

    for trial in trials:
        if trial.state.name not in ("COMPLETE", "PRUNED"):
            found.left_out["did not end with a score"] += 1
        elif trial.state.name == "COMPLETE" and len(trial.values) != objectives:
            found.left_out["with another number of objectives"] += 1
        elif not _is_whole(space, trial.params):
            found.left_out["with values outside the space"] += 1
        else:
            found.history.append(
                create_trial(
                    state=trial.state,
                    values=trial.values,
                    params=trial.params,
                    distributions=_distributions(space, trial.params),
                    intermediate_values=trial.intermediate_values,
                )
            )


def _queue(found: WarmStart, space: SearchSpace, params: Mapping[str, Any]) -> None:
    """Try the values that fit first; what is left is drawn."""
    fitting = {
        name: value
        for name, value in params.items()
        if name in space.root and _takes(space.root[name], value)
    }
    if fitting:
        found.queued.append(fitting)
    else:
        found.left_out["without a value of the space"] += 1


def _is_whole(space: SearchSpace, params: Mapping[str, Any]) -> bool:
    """Whether these are the parameters that the space would draw, each with a value that it could."""
    active = space.active(params)
    return set(active) == set(params) and all(_takes(space.root[name], params[name]) for name in active)


def _takes(parameter: Parameter, value: Any) -> bool:
    if parameter.choices:
        return value in list(parameter.by_label)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    assert parameter.low is not None and parameter.high is not None
    return is_number and parameter.low <= value <= parameter.high


def _distributions(space: SearchSpace, params: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    from optuna.trial import FixedTrial

    fixed = FixedTrial(dict(params))
    space.draw(fixed)
    return dict(fixed.distributions)


def _of_study(source: str, study: Study, storage: Storage) -> tuple[list[FrozenTrial], bool]:
    """Its trials, and whether they are of the same data and metric. StorageError where it is not there."""
    url, _, name = source.rpartition("#")
    with tempfile.TemporaryDirectory(prefix="isoformer-warm-") as work:
        if not url:
            key = f"studies/{name}/study.db"
            if not storage.exists(key):
                raise StorageError(
                    f"sweep.warm_start {source}: {storage.uri}/{key} is not there; allowed: a study of this "
                    f"root, URL#name of one in a database, {MLFLOW}<run id>"
                )
            url = f"sqlite:///{storage.download(key, Path(work, 'study.db'))}"
        elif is_file(url) and not Path(url.removeprefix("sqlite:///")).exists():
            raise StorageError(f"sweep.warm_start {source}: there is no such file")
        database = open_storage_at(url)
        try:
            number = database.get_study_id_from_name(name)
        except KeyError:
            there = ", ".join(one.study_name for one in database.get_all_studies()) or "none"
            raise StorageError(
                f"sweep.warm_start: {without_password(url)} has no study {name!r}; it has: {there}"
            ) from None
        theirs = database.get_study_user_attrs(number).get("made_from", {})
        ours = study.attributes["made_from"]
        same = all(theirs.get(part) == ours[part] for part in ("dataset", "metric"))
        return database.get_all_trials(number), same


def _of_mlflow(run_id: str, space: SearchSpace, tracking: TrackingConfig) -> dict[str, Any]:
    """The values of a run: a trial's own parameters, or the configuration that a training run logged."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        logged = MlflowClient(tracking_uri=tracking.resolved_uri).get_run(run_id).data.params
    except MlflowException as error:
        first = str(error).splitlines()[0]
        raise StorageError(f"sweep.warm_start {MLFLOW}{run_id}: {tracking.shown_uri}: {first}") from None
    found = {}
    for name, parameter in space.root.items():
        text = logged.get(name, logged.get(parameter.path))
        value = None if text is None else _parsed(parameter, text)
        if value is not None:
            found[name] = value
    return found


def _parsed(parameter: Parameter, text: str) -> Any:
    """The label or number that MLflow has as text; None where it is none of the parameter's."""
    for label, choice in parameter.by_label.items():
        shown_as = {str(label), str(choice), str(list(choice)) if isinstance(choice, tuple) else ""}
        if text in shown_as:
            return label
    if parameter.choices:
        return None
    try:
        return int(text) if parameter.is_whole else float(text)
    except ValueError:
        return None
