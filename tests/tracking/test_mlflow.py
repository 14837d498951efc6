"""The same promises against MLflow itself, on its SQLite store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from isoformer.tracking import Tracker, TrackingConfig, probe
from isoformer.tracking.journal import Journal
from tracking.made_runs import client_of, runs_of


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    """One SQLite store for the module: making a fresh one takes seconds."""
    return TrackingConfig(
        folder=str(tmp_path_factory.mktemp("tracking")), retry_seconds=0.2, close_seconds=200
    )


def track_a_sweep(config: TrackingConfig, *, key: str) -> None:
    with Tracker(config) as tracker:
        parent = tracker.start_run(f"sweep-{key}", key=f"{key}-parent", tags={"dataset.fingerprint": "abc"})
        child = tracker.start_run(
            f"trial-{key}", key=f"{key}-child", parent=parent, params={"model.heads": "4"}
        )
        for step in range(3):
            tracker.log_metrics(child, {"validation_r2": 0.1 * step, "loss": 1.0 - step}, step=step)
        tracker.log_text(child, "model:\n  heads: 4\n", "config.yaml")
        tracker.end_run(child)
        tracker.end_run(parent)


def test_a_sweep_is_one_parent_with_children_in_sqlite(store: TrackingConfig) -> None:
    track_a_sweep(store, key="one")
    runs = runs_of(store)
    parent, child = runs["sweep-one"], runs["trial-one"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.tags["dataset.fingerprint"] == "abc"
    assert child.data.params == {"model.heads": "4"}
    assert child.data.metrics == {"validation_r2": pytest.approx(0.2), "loss": -1.0}
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    downloaded = client_of(store).download_artifacts(child.info.run_id, "config.yaml")
    assert Path(downloaded).read_text() == "model:\n  heads: 4\n"
    assert not list(store.journal_folder.glob("*.jsonl"))


def test_tracking_the_same_run_again_makes_no_second_run_or_metric(store: TrackingConfig) -> None:
    track_a_sweep(store, key="again")
    before = runs_of(store)
    with Tracker(store) as tracker:
        run = tracker.start_run("ignored", key="again-child")
        tracker.log_metrics(run, {"loss": -5.0}, step=7)
        tracker.end_run(run, status="KILLED")
    after = runs_of(store)
    assert after.keys() == before.keys()
    assert after["trial-again"].info.status == "KILLED"
    history = client_of(store).get_metric_history(after["trial-again"].info.run_id, "loss")
    assert [metric.step for metric in history] == [0, 1, 2, 7]


def test_a_logged_file_arrives_and_its_copy_goes(store: TrackingConfig, tmp_path: Path) -> None:
    table = tmp_path / "tissues.csv"
    table.write_text("tissue,r2\n")
    with Tracker(store) as tracker:
        run = tracker.start_run("with-file")
        tracker.log_file(run, table, folder="tables")
    found = client_of(store).download_artifacts(runs_of(store)["with-file"].info.run_id, "tables/tissues.csv")
    assert Path(found).read_text() == "tissue,r2\n"
    assert not list(store.journal_folder.rglob("tissues.csv"))


def test_probe_counts_the_runs(store: TrackingConfig) -> None:
    assert "experiment 'isoformer'" in probe(store, "unused")


def test_nothing_is_sent_to_the_makers_of_mlflow(store: TrackingConfig) -> None:
    probe(store, "unused")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_work_that_is_resumed_after_a_kill_repeats_no_metric(store: TrackingConfig) -> None:
    """The second tracker repeats steps with the same values at another time, and one with another value."""
    for steps, loss_of_2 in ((range(5), 0.2), (range(2, 8), 0.25)):
        with Tracker(store) as tracker:
            run = tracker.start_run("resumed", key="resumed")
            for step in steps:
                tracker.log_metrics(run, {"loss": loss_of_2 if step == 2 else step / 10}, step=step)
    history = client_of(store).get_metric_history(runs_of(store)["resumed"].info.run_id, "loss")
    assert sorted((metric.step, metric.value) for metric in history) == [
        (0, 0.0), (1, 0.1), (2, 0.2), (2, 0.25), (3, 0.3), (4, 0.4), (5, 0.5), (6, 0.6), (7, 0.7),
    ]  # fmt: skip


def test_a_metric_that_waits_in_a_journal_and_comes_again_is_logged_once(store: TrackingConfig) -> None:
    """A killed tracker's events were never sent; its work, resumed, repeats some of them."""
    left = Journal.create(store.journal_folder)
    start = {"name": "left", "parent": None, "tags": {}, "params": {}, "new": True}
    left.write({"op": "start", "run": "left", "time": 1, **start})
    for step in range(3):
        values = {"loss": step / 10}
        left.write({"op": "metrics", "run": "left", "time": step, "step": step, "values": values})
    left.close()
    with Tracker(store) as tracker:
        run = tracker.start_run("left", key="left")
        for step in range(1, 5):
            tracker.log_metrics(run, {"loss": step / 10}, step=step)
    history = client_of(store).get_metric_history(runs_of(store)["left"].info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(s, s / 10) for s in range(5)]
