"""A sweep on a real Ray: trials, tracking, errors, and a driver killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest

from isoformer.config import build, load_yaml
from isoformer.errors import ConfigError, IsoformerError, StorageError
from isoformer.model import ModelConfig
from isoformer.sweep import SearchSpace, SweepConfig, TrialRow, sweep
from isoformer.sweep.data import SharedData
from isoformer.tracking import TrackingConfig
from isoformer.training.config import TrainConfig

KEYS: Any = {
    "rna": ("tiny-rna.11111111.pooled.f16.aaaaaaaa", "tiny-rna.11111111.bins-4.f16.bbbbbbbb"),
    "protein": ("tiny-protein.22222222.pooled.f16.cccccccc", "tiny-protein.22222222.bins-4.f16.dddddddd"),
}
BASE = TrainConfig(model=ModelConfig(modalities=("rna", "protein")), epochs=8)
QUIET = TrackingConfig(enabled=False)


@pytest.mark.slow
def test_a_sweep_finds_tracks_and_writes_down(ray_local: None, shared: SharedData, tmp_path: Path) -> None:
    seen: list[TrialRow] = []
    config = SweepConfig(trials=8, keys=KEYS, seed=1, grace_epochs=2)
    result = sweep(config, BASE, str(tmp_path), progress=seen.append, data=shared)
    folder = tmp_path / "studies" / "sweep"

    assert len(result.trials) == len(seen) == 8
    assert {row.state for row in result.trials} <= {"complete", "pruned"}
    assert result.best is not None and result.best_trial is not None
    assert result.best_trial.value == max(row.value or -9 for row in result.trials if row.state == "complete")
    assert build(TrainConfig, load_yaml(folder / "best.yaml")) == result.best
    written = json.loads((folder / "trials.json").read_text())
    assert written["best"] == result.best_trial.number and len(written["trials"]) == 8
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder}/study.db")
    assert len(study.trials) == 8
    check_tracked(TrackingConfig().for_root(str(tmp_path)), result.trials)

    with pytest.raises(StorageError, match="--resume"):
        sweep(config, BASE, str(tmp_path), tracking=QUIET, data=shared)
    more = sweep(config.edited(trials=9), BASE, str(tmp_path), tracking=QUIET, data=shared, resume=True)
    assert more.trials[:8] == result.trials, "what was finished stays as it was"
    assert len(more.trials) == 9


@pytest.mark.slow
def test_a_study_of_a_bucket_is_kept_locally_and_put_there_at_the_end(
    ray_local: None, shared: SharedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isoformer.sweep.run.local_path", lambda root: None)
    config = SweepConfig(trials=2, keys=KEYS, epochs=1)
    root, first, second = (tmp_path / name for name in ("bucket", "first", "second"))
    found = []
    for machine in (first, second):
        tracking = TrackingConfig(folder=str(machine), enabled=False)
        is_second = machine == second
        found.append(sweep(config, BASE, str(root), tracking=tracking, data=shared, resume=is_second))
        assert (machine / "studies" / "sweep" / "study.db").exists()
    assert (root / "studies" / "sweep" / "study.db").exists()
    assert found[0].trials == found[1].trials


@pytest.mark.slow
def test_a_sweep_whose_every_trial_fails_says_why(
    ray_local: None, shared: SharedData, tmp_path: Path
) -> None:
    keys = {modality: (f"gone-{modality}",) for modality in KEYS}
    with pytest.raises(IsoformerError, match=r"none of 2 trials came to its end; trial 0: .*gone-"):
        sweep(SweepConfig(trials=2, keys=keys), BASE, str(tmp_path), tracking=QUIET, data=shared)
    assert json.loads((tmp_path / "studies" / "sweep" / "trials.json").read_text())["best"] is None


def check_tracked(tracking: TrackingConfig, rows: list[TrialRow]) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=tracking.resolved_uri)
    experiment = client.get_experiment_by_name(tracking.experiment)
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.data.tags["isoformer.run"]: run for run in runs if run not in parents}
    assert parents[0].data.tags["transcripts_fingerprint"] == "made"
    assert len(parents) == 1 and parents[0].data.metrics["best_score"] == max(
        row.value for row in rows if row.state == "complete" and row.value is not None
    )
    assert set(children) == {row.run for row in rows}
    for row in rows:
        child = children[row.run]
        assert child.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert len(child.data.tags["data_fingerprint"]) == 16
        assert any(tag.startswith("encoder_key.") for tag in child.data.tags)
        assert child.data.params["fusion"] == row.params["fusion"]
        assert len(child.data.metrics) <= 20
        assert child.info.status == "FINISHED"
        assert [item.path for item in client.list_artifacts(child.info.run_id)] == ["config.yaml"]


@pytest.mark.slow
def test_a_failing_trial_is_reported_and_does_not_end_the_sweep(
    ray_local: None, shared: SharedData, tmp_path: Path
) -> None:
    space = {"key": {"path": "keys.rna", "choices": [KEYS["rna"][0], "gone.3.pooled.f16.zzzzzzzz"]}}
    config = SweepConfig(
        trials=6, keys=KEYS, space=build(SearchSpace, space), sampler="random", seed=1, epochs=2
    )
    result = sweep(config, BASE, str(tmp_path), tracking=QUIET, data=shared)
    states = Counter(row.state for row in result.trials)
    assert states["failed"] >= 1 and states["complete"] >= 1 and states.total() == 6
    assert all(("gone.3" in row.error) == (row.state == "failed") for row in result.trials)


def test_a_trial_that_no_node_can_hold_is_refused(
    ray_local: None, shared: SharedData, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"asks for 512 CPU"):
        sweep(SweepConfig(keys=KEYS, cpus=512), BASE, str(tmp_path), tracking=QUIET, data=shared)


def test_two_sweeps_on_one_study_are_refused(ray_local: None, shared: SharedData, tmp_path: Path) -> None:
    from filelock import FileLock

    folder = tmp_path / "studies" / "sweep"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"), pytest.raises(StorageError, match="another process"):
        sweep(SweepConfig(keys=KEYS), BASE, str(tmp_path), tracking=QUIET, data=shared)


DRIVER = """
import pickle, sys
from isoformer.model import ModelConfig
from isoformer.ray_session import RayConfig, ray_session
from isoformer.sweep import SweepConfig, sweep
from isoformer.tracking import TrackingConfig
from isoformer.training.config import TrainConfig

root, address, made = sys.argv[1:]
shared, config, base = pickle.load(open(made, "rb"))
with ray_session(RayConfig(address=address)):
    sweep(config, base, root, tracking=TrackingConfig(enabled=False), data=shared)
"""


@pytest.mark.slow
def test_a_killed_driver_is_resumed_without_repeating_or_losing_a_trial(
    ray_local: None, shared: SharedData, tmp_path: Path
) -> None:
    import pickle

    import ray

    base = BASE.edited(epochs=40, patience=40)
    config = SweepConfig(trials=6, keys=KEYS, prune=False)
    made = tmp_path / "made.pickle"
    made.write_bytes(pickle.dumps((shared, config, base)))
    address = ray.get_runtime_context().gcs_address
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path), address, str(made)], start_new_session=True
    )
    database = tmp_path / "studies" / "sweep" / "study.db"
    try:
        before = wait_for_trials(database, driver, finished=2)
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()

    result = sweep(config, base, str(tmp_path), tracking=QUIET, data=shared, resume=True)
    states = Counter(row.state for row in result.trials)
    assert states["complete"] == 6 and set(states) <= {"complete", "interrupted"}
    after = {row.number: (row.state, row.value, row.params) for row in result.trials}
    assert before.items() <= after.items(), "finished trials are the same"
    for row in result.trials:
        if (
            row.state == "interrupted" and row.params
        ):  # a kill while values are drawn leaves some of them, or none
            later = [
                other for other in result.trials if other.number > row.number and other.state == "complete"
            ]
            assert any(row.params.items() <= other.params.items() for other in later)


def wait_for_trials(database: Path, driver: subprocess.Popen[bytes], *, finished: int) -> dict[int, Any]:
    """Trials that are complete, as soon as there are enough."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert driver.poll() is None, "the driver ended before it could be killed"
        if database.exists():
            done = completed(database)
            if len(done) >= finished:
                return done
        time.sleep(0.05)
    raise TimeoutError("no trial finished")


def completed(database: Path) -> dict[int, Any]:
    """Optuna opens a study only once the driver has made it: to open one makes its tables, too."""
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            if not connection.execute("SELECT 1 FROM studies").fetchall():
                return {}
    except sqlite3.OperationalError:
        return {}
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{database}")
    return {t.number: ("complete", t.value, t.params) for t in study.trials if t.state.name == "COMPLETE"}
