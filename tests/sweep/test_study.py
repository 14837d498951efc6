"""The study is the truth: what is done stays done, what was left running is gone on with under its number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution

from isoformer.config import to_yaml, without_password
from isoformer.errors import FingerprintError, StorageError
from isoformer.storage import open_storage
from isoformer.sweep import SweepConfig
from isoformer.sweep.database import open_storage_at
from isoformer.sweep.place import study_place
from isoformer.sweep.results import pareto_front
from isoformer.sweep.study import Study, TrialRow, importances, open_study, open_study_line
from isoformer.tracking import TrackingConfig

MADE_FROM = {"dataset": "abc", "space": "{}", "metric": "val_r2"}


def opened(path: Path, **config: Any) -> Study:
    return open_study(f"sqlite:///{path}", "sweep", SweepConfig(**config), made_from=MADE_FROM)


def begun(study: Study, x: float = 0.5, **more: float) -> optuna.trial.FrozenTrial:
    params = {"x": x, **more}
    return study.begin(params, {name: FloatDistribution(0, 1) for name in params}, run_prefix="run")


def test_what_was_left_running_is_there_again_with_its_values(tmp_path: Path) -> None:
    study = opened(tmp_path / "study.db")
    for x in (0.1, 0.2):
        study.end(begun(study, x), "complete", [x])
    killed = begun(study, 0.3)
    study.report(killed, 0, 0.25)

    again = opened(tmp_path / "study.db")
    assert [trial.number for trial in again.left_running] == [2] and again.done == 2
    (left,) = again.left_running
    assert left.params == {"x": 0.3} and left.intermediate_values == {0: 0.25}
    again.end(left, "complete", [0.4])
    rows = opened(tmp_path / "study.db").rows()
    assert [(row.number, row.state, row.value) for row in rows] == [
        (0, "complete", 0.1), (1, "complete", 0.2), (2, "complete", 0.4),
    ]  # fmt: skip
    assert [row.run for row in rows] == ["run-00000", "run-00001", "run-00002"]


def test_memory_and_database_agree(tmp_path: Path) -> None:
    study = opened(tmp_path / "study.db")
    done, stopped, failed = begun(study), begun(study, 0.7), begun(study, 0.9)
    study.describe(done, seconds=2.0, device_seconds=1.0, parameters=9, tissues='{"Liver": 0.5}')
    study.end(done, "complete", [0.5])
    for epoch, value in enumerate([0.1, 0.4, 0.3]):
        study.report(stopped, epoch, value)
    study.end(stopped, "pruned")
    study.describe(failed, error="ValueError: no")
    study.end(failed, "failed")
    rows, read = study.rows(), opened(tmp_path / "study.db").rows()
    for ours, theirs in zip(rows, read, strict=True):
        assert {**ours.to_json(), "ended": 0, "started": 0} == {**theirs.to_json(), "ended": 0, "started": 0}
    assert (rows[0].tissues, rows[0].parameters, rows[0].seconds) == ({"Liver": 0.5}, 9, 2.0)
    assert (rows[1].state, rows[1].value, rows[1].epochs) == ("pruned", 0.3, 3)
    assert (rows[2].state, rows[2].error) == ("failed", "ValueError: no")
    assert study.done == 3 and study.device_hours == pytest.approx(1 / 3600)


def test_the_public_tools_read_it(tmp_path: Path) -> None:
    study = opened(tmp_path / "study.db", cost="seconds")
    study.end(begun(study), "complete", [0.5, 3.0])
    loaded = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path}/study.db")
    assert loaded.best_trials[0].values == [0.5, 3.0]
    assert open_study_line(tmp_path / "study.db") == f"optuna-dashboard sqlite:///{tmp_path}/study.db"


def test_another_space_or_dataset_is_refused_by_name(tmp_path: Path) -> None:
    opened(tmp_path / "study.db")
    changed = {**MADE_FROM, "dataset": "xyz"}
    with pytest.raises(FingerprintError, match=r"another dataset.*abc.*xyz"):
        open_study(f"sqlite:///{tmp_path}/study.db", "sweep", SweepConfig(), made_from=changed)


def test_an_existing_study_is_not_gone_on_with_unasked_and_not_by_two(tmp_path: Path) -> None:
    storage, quiet = open_storage(str(tmp_path)), TrackingConfig(enabled=False)

    def place(*, resume: bool = False, **config: Any) -> Any:
        return study_place(storage, str(tmp_path), SweepConfig(**config), quiet, resume=resume)

    with place() as first:
        Study(open_storage_at(first.url), "sweep", ["maximize"])
        with pytest.raises(StorageError, match="another process"), place(resume=True):
            pass
    with pytest.raises(StorageError, match="--resume"), place():
        pass
    with place(resume=True):
        pass


def test_importances_name_what_matters_and_need_enough_trials(tmp_path: Path) -> None:
    study = opened(tmp_path / "study.db")
    assert importances(study) == {}
    for place in range(12):
        x, idle = (place * 0.37) % 1, (place * 0.71) % 1
        study.end(begun(study, x, idle=idle), "complete", [10 * x + 0.01 * idle])
    assert max(importances(study), key=lambda name: importances(study)[name]) == "x"


def test_a_password_is_shown_nowhere() -> None:
    url = "postgresql+psycopg://ann:secret-word@127.0.0.1:1/db"
    assert without_password(url) == "postgresql+psycopg://ann:***@127.0.0.1:1/db"
    assert "secret-word" not in open_study_line(url)
    config = SweepConfig(storage=url, warm_start=(f"{url}#old",))
    assert "secret-word" not in to_yaml(config) + repr(config) + config.model_dump_json()
    assert config.edited(trials=3).storage == url, "what connects keeps it"
    with pytest.raises(StorageError) as raised:
        open_storage_at(url)
    assert "secret-word" not in str(raised.value) and "ann:***" in str(raised.value)


def row(number: int, *values: float, state: Any = "complete") -> TrialRow:
    return TrialRow(number, state, values[0], {}, 1, 1.0, values=list(values))


def test_the_front_is_what_nothing_beats() -> None:
    rows = [
        row(0, 1.0, 5.0),
        row(1, 0.5, 1.0),
        row(2, 0.4, 2.0),
        row(3, 1.0, 6.0),
        row(4, 9, 0, state="pruned"),
    ]
    assert pareto_front(rows, ["maximize", "minimize"]) == [0, 1]
    assert pareto_front([row(0, 1.0), row(1, 2.0)], ["maximize"]) == [1]
