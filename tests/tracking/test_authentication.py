"""A server with authentication whose artefacts lie in S3: credentials come from the environment alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from isoformer.benchmark.local_mlflow import LocalMlflow
from isoformer.errors import StorageError
from isoformer.storage import open_storage
from isoformer.tracking import Tracker, TrackingConfig, probe, replay, run_links
from services import S3Server
from tracking.made_runs import end_trial, everything_of, log_epochs, start_trial

USER, PASSWORD, WRONG = "anna", "right-Pa55word-of-anna", "wrong-Pa55word-of-anna"
ADMIN, ADMIN_PASSWORD = "keeper", "admin-Pa55word-of-keeper"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def artifacts(s3_server: S3Server) -> str:
    return s3_server.root()


@pytest.fixture(scope="module")
def server(artifacts: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalMlflow]:
    """`basic-auth`, with one user besides its administrator."""
    folder = tmp_path_factory.mktemp("auth")
    settings = {
        "default_permission": "READ",
        "database_uri": f"sqlite:///{folder}/users.db",
        "admin_username": ADMIN,
        "admin_password": ADMIN_PASSWORD,
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }
    lines = ["[mlflow]", *(f"{key} = {value}" for key, value in settings.items())]
    (folder / "auth.ini").write_text("\n".join(lines) + "\n")
    options = ["--app-name", "basic-auth", "--artifacts-destination", artifacts]
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-the-test",
    }
    with LocalMlflow(folder, options=options, environment=environment) as server:
        created = requests.post(
            f"{server.url}/api/2.0/mlflow/users/create",
            json={"username": USER, "password": PASSWORD},
            auth=(ADMIN, ADMIN_PASSWORD),
            timeout=30,
        )
        assert created.status_code == 200, created.text
        yield server


def log_in(monkeypatch: pytest.MonkeyPatch, password: str | None) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")  # a process a file, to read it back
    if password is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)


def config_of(server: LocalMlflow, folder: Path, experiment: str) -> TrackingConfig:
    return TrackingConfig(
        uri=server.url, folder=str(folder), experiment=experiment, retry_seconds=0.3, close_seconds=60
    )


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "tissues.csv"
    path.write_text("tissue,r2\n")
    return path


def track_trial(tracker: Tracker, table: Path) -> None:
    run = start_trial(tracker, "trial")
    log_epochs(tracker, run, range(5))
    end_trial(tracker, run, table)


def test_artefacts_of_a_user_lie_in_the_bucket(
    server: LocalMlflow, artifacts: str, tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(monkeypatch, PASSWORD)
    config = config_of(server, tmp_path / "work", "in the bucket")
    with Tracker(config) as tracker:
        track_trial(tracker, table)
    found = everything_of(config, "trial")
    assert found["status"] == "FINISHED"
    assert found["artifacts"] == {"config.yaml": "run: trial\n", "tables/tissues.csv": "tissue,r2\n"}
    names = {key.rsplit("/", 1)[-1] for key in open_storage(artifacts).list("")}
    assert {"config.yaml", "tissues.csv"} <= names


@pytest.mark.parametrize("password", [None, WRONG], ids=["none", "wrong"])
def test_wrong_credentials_lose_nothing_and_are_said_once(
    password: str | None,
    server: LocalMlflow,
    tmp_path: Path,
    table: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    log_in(monkeypatch, password)
    config = config_of(server, tmp_path / "work", f"refused, {'wrong' if password else 'no'} password")
    tracker = Tracker(config)
    track_trial(tracker, table)
    assert not tracker.flush() and not tracker.flush()
    waiting = tracker.waiting
    assert tracker.close() == waiting == 11
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    refusals = [text for text in warnings if "refuses the credentials" in text]
    assert len(refusals) == 1 and server.url in refusals[0] and "MLFLOW_TRACKING_PASSWORD" in refusals[0]
    assert run_links(config, ["any"]) == {}
    with pytest.raises(StorageError, match="401"):
        probe(config, str(tmp_path))

    log_in(monkeypatch, PASSWORD)
    report = replay(config)
    assert (report.sent, report.rejected, report.waiting) == (waiting, 0, 0)
    found = everything_of(config, "trial")
    assert found["status"] == "FINISHED" and len(found["artifacts"]) == 2
    assert found["metrics"]["score"] == [(step, step + 0.25) for step in range(5)]

    said = [caplog.text, *(path.read_text() for path in (tmp_path / "work").rglob("*") if path.is_file())]
    assert not [text for text in said if PASSWORD in text or WRONG in text]
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == PASSWORD


def test_an_experiment_of_somebody_else_waits_too(
    server: LocalMlflow, tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    log_in(monkeypatch, PASSWORD)
    admin, api = (ADMIN, ADMIN_PASSWORD), f"{server.url}/api"
    made = requests.post(
        f"{api}/2.0/mlflow/experiments/create", json={"name": "theirs"}, auth=admin, timeout=30
    )
    config = config_of(server, tmp_path / "work", "theirs")
    tracker = Tracker(config)
    track_trial(tracker, table)
    assert not tracker.flush()
    assert tracker.close() == 11
    assert caplog.text.count("refuses the credentials") == 1

    grant = {"username": USER, "resource_type": "experiment", "permission": "EDIT"}
    grant["resource_id"] = made.json()["experiment_id"]
    url = f"{api}/3.0/mlflow/users/permissions/grant"
    assert requests.post(url, json=grant, auth=admin, timeout=30).status_code == 200
    assert replay(config).sent == 11
    assert everything_of(config, "trial")["status"] == "FINISHED"
