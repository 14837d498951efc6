"""A sweep on a real Ray: trials, tracking, errors, and a driver killed in the middle."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from isoformer.config import build, load_yaml
from isoformer.errors import ConfigError, IsoformerError, StorageError
from isoformer.model import ModelConfig
from isoformer.sweep import SearchSpace, SweepConfig, SweepResult, TrialRow, sweep
from isoformer.sweep.data import SharedData
from isoformer.sweep.run import _require_one_finished
from isoformer.tracking import TrackingConfig
from isoformer.training.config import TrainConfig

KEYS: Any = {
    "rna": ("tiny-rna.11111111.pooled.f16.aaaaaaaa", "tiny-rna.11111111.bins-4.f16.bbbbbbbb"),
    "protein": ("tiny-protein.22222222.pooled.f16.cccccccc", "tiny-protein.22222222.bins-4.f16.dddddddd"),
}
BASE = TrainConfig(model=ModelConfig(modalities=("rna", "protein")), epochs=8)
QUIET = TrackingConfig(enabled=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
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
    complete = [row for row in result.trials if row.state == "complete"]
    assert all(set(row.tissues) == set(shared.table.target_names) for row in complete)
    assert all(row.epochs == len(row.curve) > 0 and (row.parameters or 0) > 0 for row in complete)
    mean = sum(result.best_trial.tissues.values()) / len(result.best_trial.tissues)
    assert mean == pytest.approx(result.best_trial.value, abs=1e-5), "the mean over tissues is the score"
    written = json.loads((folder / "trials.json").read_text())
    assert written["best"] == result.best_trial.number and len(written["trials"]) == 8
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder}/study.db")
    assert len(study.trials) == 8
    check_tracked(TrackingConfig().for_root(str(tmp_path)), result.trials)

    with pytest.raises(StorageError, match="--resume"):
        sweep(config, BASE, str(tmp_path), tracking=QUIET, data=shared)
    again = sweep(config, BASE, str(tmp_path), tracking=QUIET, data=shared, resume=True)
    assert again.trials == result.trials, "what was finished stays as it was"


def test_a_sweep_whose_every_trial_fails_says_why() -> None:
    rows = [
        TrialRow(0, "failed", None, {}, 0, 1.0, error="ValueError: no"),
        TrialRow(1, "pruned", 0.1, {}, 1, 1.0),
    ]
    result = SweepResult("s", "val_r2", "", rows, None, None, {}, (("val_r2", "maximize"),))
    with pytest.raises(IsoformerError, match=r"none of 2 trials came to its end; trial 0: ValueError: no"):
        _require_one_finished(result)
    _require_one_finished(replace(result, status="paused"))


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
        listed = [item.path for item in client.list_artifacts(child.info.run_id)]
        assert listed == ["config.yaml"] + ["validation"] * (row.state == "complete")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_failing_trial_ends_nothing_and_a_buckets_study_is_kept_there(
    ray_local: None, shared: SharedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second machine finds the study under the root, with nothing left to do."""
    monkeypatch.setattr("isoformer.sweep.place.local_path", lambda root: None)
    space = {"key": {"path": "keys.rna", "choices": [KEYS["rna"][0], "gone.3.pooled.f16.zzzzzzzz"]}}
    config = SweepConfig(
        trials=6, keys=KEYS, space=build(SearchSpace, space), sampler="random", seed=1, epochs=2
    )
    root, first, second = (tmp_path / name for name in ("bucket", "first", "second"))
    found = []
    for machine in (first, second):
        tracking = TrackingConfig(folder=str(machine), enabled=False)
        is_second = machine == second
        found.append(sweep(config, BASE, str(root), tracking=tracking, data=shared, resume=is_second))
        assert (machine / "studies" / "sweep" / "study.db").exists()
    assert (root / "studies" / "sweep" / "study.db").exists()
    assert found[0].trials == found[1].trials
    states = Counter(row.state for row in found[0].trials)
    assert states["failed"] >= 1 and states["complete"] >= 1 and states.total() == 6
    assert all(("gone.3" in row.error) == (row.state == "failed") for row in found[0].trials)


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
