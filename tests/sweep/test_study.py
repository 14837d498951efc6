"""The study file is the truth: what is done stays done, what was interrupted runs again, and only that."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from isoformer.errors import FingerprintError, StorageError
from isoformer.sweep.study import (
    count_done,
    importances,
    open_study,
    queue_interrupted,
    require_new,
    trial_rows,
)

MADE_FROM = {"dataset": "abc", "space": "{}", "metric": "val_r2"}


def opened(path: Path, *, seed: int = 0) -> optuna.Study:
    return open_study(path, "sweep", seed=seed, sampler="random", made_from=MADE_FROM)


def ask(study: optuna.Study) -> optuna.Trial:
    trial = study.ask()
    trial.suggest_float("x", 0.0, 1.0)
    return trial


def test_finished_trials_survive_and_interrupted_ones_are_queued_with_their_parameters(
    tmp_path: Path,
) -> None:
    study = opened(tmp_path / "study.db")
    for _ in range(3):
        trial = ask(study)
        study.tell(trial, trial.params["x"])
    killed = ask(study)

    again = opened(tmp_path / "study.db")
    assert [row.number for row in queue_interrupted(again)] == [killed.number]
    assert count_done(again) == 3
    assert ask(again).params == killed.params
    assert [row.state for row in trial_rows(again)] == ["complete"] * 3 + ["interrupted", "running"]


def test_a_resumed_study_draws_new_values(tmp_path: Path) -> None:
    first = ask(opened(tmp_path / "study.db")).params["x"]
    assert ask(opened(tmp_path / "study.db")).params["x"] != first


def test_the_same_seed_draws_the_same_values(tmp_path: Path) -> None:
    drawn = [ask(opened(tmp_path / name / "study.db")).params["x"] for name in ("a", "b")]
    assert drawn[0] == drawn[1]


def test_another_space_or_dataset_is_refused_by_name(tmp_path: Path) -> None:
    opened(tmp_path / "study.db")
    changed = {**MADE_FROM, "dataset": "xyz"}
    with pytest.raises(FingerprintError, match=r"another dataset.*abc.*xyz"):
        open_study(tmp_path / "study.db", "sweep", seed=0, sampler="tpe", made_from=changed)


def test_an_existing_study_is_not_gone_on_with_unasked(tmp_path: Path) -> None:
    opened(tmp_path / "study.db")
    require_new(tmp_path / "study.db", resume=True)
    with pytest.raises(StorageError, match="--resume"):
        require_new(tmp_path / "study.db", resume=False)


def test_importances_name_what_matters_and_need_enough_trials(tmp_path: Path) -> None:
    study = opened(tmp_path / "study.db")
    assert importances(study) == {}
    for _ in range(12):
        trial = study.ask()
        x, idle = trial.suggest_float("x", 0, 1), trial.suggest_float("idle", 0, 1)
        study.tell(trial, 10 * x + 0.01 * idle)
    assert max(importances(study), key=lambda name: importances(study)[name]) == "x"


def test_failed_trials_keep_their_error_and_pruned_ones_their_last_score(tmp_path: Path) -> None:
    study = opened(tmp_path / "study.db")
    failed, pruned = ask(study), ask(study)
    failed.set_user_attr("error", "ValueError: no")
    study.tell(failed, state=optuna.trial.TrialState.FAIL)
    for step, score in enumerate([0.1, 0.4, 0.3]):
        pruned.report(score, step)
    study.tell(pruned, state=optuna.trial.TrialState.PRUNED)
    rows = trial_rows(study)
    assert (rows[0].state, rows[0].error) == ("failed", "ValueError: no")
    assert (rows[1].state, rows[1].value, rows[1].epochs) == ("pruned", 0.3, 3)
    assert count_done(study) == 2
