"""The same promises against MLflow itself: its SQLite store, and a real server that is killed mid-run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isoformer.tracking import Tracker, TrackingConfig, probe, replay


def client_of(config: TrackingConfig) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=config.resolved_uri)


def runs_of(config: TrackingConfig) -> dict[str, Any]:
    client = client_of(config)
    experiment = client.get_experiment_by_name(config.experiment)
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


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


class Server:
    """`mlflow server` on loopback, killed as hard as can be: with its whole process group."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe_socket:
            probe_socket.bind(("127.0.0.1", 0))
            self.port = probe_socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        quick = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment = {**os.environ, **quick}
        log = (self.folder / "server.log").open("ab")
        self.process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=self.folder
        )
        log.close()
        self._wait_until_up()

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.3)
        raise TimeoutError((self.folder / "server.log").read_text()[-2000:])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.mark.slow
def test_a_server_killed_mid_run_loses_nothing(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = TrackingConfig(uri=server.url, folder=str(tmp_path), retry_seconds=0.5, close_seconds=60)
    tracker = Tracker(config)
    run = tracker.start_run("killed-server")
    tracker.log_metrics(run, {"loss": 0.0}, step=0)
    assert any(tracker.flush(30) for _ in range(10)), "a busy server may need more than one try"
    caplog.clear()
    server.kill()
    start = time.perf_counter()
    for step in range(1, 200):
        tracker.log_metrics(run, {"loss": float(step)}, step=step)
    tracker.log_text(run, "a: 1\n", "config.yaml")
    tracker.end_run(run)
    assert time.perf_counter() - start < 2, "the work does not wait for a dead server"
    assert tracker.close() == 201
    assert caplog.text.count("does not answer") == 1

    server.start()
    report = replay(config)
    assert (report.sent, report.waiting) == (201, 0)
    finished = runs_of(config)["killed-server"]
    history = client_of(config).get_metric_history(finished.info.run_id, "loss")
    assert sorted(metric.step for metric in history) == list(range(200))
    assert finished.info.status == "FINISHED"
