"""Runs as a sweep tracks them, and everything that MLflow knows of a run, to compare two stores by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isoformer.tracking import Tracker, TrackingConfig

METRICS = ("train_loss", "val_loss", "val_r2", "val_spearman", "score")


def client_of(config: TrackingConfig) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=config.resolved_uri)


def runs_of(config: TrackingConfig) -> dict[str, Any]:
    """By name. AssertionError where two runs have one name."""
    client = client_of(config)
    experiment = client.get_experiment_by_name(config.experiment)
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    runs = {run.info.run_name: run for run in found}
    assert len(runs) == len(found), sorted(run.info.run_name for run in found)
    return runs


def start_trial(tracker: Tracker, name: str, *, parent: str | None = None) -> str:
    """A trial as far as its first epoch."""
    run = tracker.start_run(
        name, parent=parent, tags={"data_fingerprint": "abc"}, params={"model.heads": "4"}
    )
    tracker.log_input(run, name="transcripts", digest="f" * 64, source="s3://bucket/data")
    tracker.log_text(run, f"run: {name}\n", "config.yaml")
    return run


def log_epochs(tracker: Tracker, run: str, epochs: range) -> None:
    for epoch in epochs:
        tracker.log_metrics(run, {name: epoch + 0.25 for name in METRICS}, step=epoch)


def end_trial(tracker: Tracker, run: str, table: Path) -> None:
    """What follows the last epoch."""
    tracker.set_tags(run, {"trial.state": "complete"})
    tracker.log_file(run, table, folder="tables")
    tracker.end_run(run)


def everything_of(config: TrackingConfig, name: str) -> dict[str, Any]:
    """All that a run says, but for ids and times of day."""
    client, run = client_of(config), runs_of(config)[name]
    own = ("isoformer.run", "mlflow.parentRunId", "mlflow.runName")
    return {
        "status": run.info.status,
        "ended": run.info.end_time is not None,
        "params": run.data.params,
        "tags": {key: value for key, value in run.data.tags.items() if key not in own},
        "metrics": {
            key: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        },
        "inputs": [one.to_dictionary() for one in run.inputs.dataset_inputs],
        "artifacts": artifacts_of(config, run.info.run_id),
    }


def artifacts_of(config: TrackingConfig, run_id: str, folder: str | None = None) -> dict[str, str]:
    """Text by path."""
    client = client_of(config)
    found: dict[str, str] = {}
    for item in client.list_artifacts(run_id, folder):
        if item.is_dir:
            found |= artifacts_of(config, run_id, item.path)
        else:
            found[item.path] = Path(client.download_artifacts(run_id, item.path)).read_text()
    return found
