"""The whole demo as a job: a fresh two-node cluster with token authentication, S3 storage and a remote MLflow
server with authentication. It ends well in ten minutes, with the table of a local run.
"""

from __future__ import annotations

import configparser
import json
import secrets
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isoformer.benchmark.local_mlflow import LocalMlflow
from isoformer.storage import open_storage
from services import S3Server
from submission.conftest import Cluster, started_cluster

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

SECONDS = 600.0
USER = "anna"
CONCURRENT = "sweep.concurrent=2"
"""Which results a draw may look at depends on it."""


@pytest.fixture
def mlflow(s3_server: S3Server, tmp_path: Path) -> Iterator[tuple[LocalMlflow, str]]:
    password = secrets.token_hex(12)
    folder = tmp_path / "mlflow"
    folder.mkdir()
    settings = configparser.ConfigParser()
    settings["mlflow"] = {
        "default_permission": "READ",
        "database_uri": f"sqlite:///{folder}/users.db",
        "admin_username": USER,
        "admin_password": password,
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }
    with (folder / "auth.ini").open("w") as file:
        settings.write(file)
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(12),
    }
    options = ["--app-name", "basic-auth", "--artifacts-destination", s3_server.root()]
    with LocalMlflow(folder, options=options, environment=environment) as server:
        yield server, password


@pytest.fixture
def cluster(mlflow: tuple[LocalMlflow, str], tmp_path: Path) -> Iterator[Cluster]:
    _, password = mlflow
    cluster = started_cluster(
        tmp_path / "cluster", MLFLOW_TRACKING_USERNAME=USER, MLFLOW_TRACKING_PASSWORD=password
    )
    yield cluster
    cluster.isoformer("cluster", "down")


def test_the_whole_demo_as_a_job_has_the_table_of_a_local_run(
    cluster: Cluster, mlflow: tuple[LocalMlflow, str], s3_root: str, tmp_path: Path
) -> None:
    server, password = mlflow
    began = time.monotonic()
    job = cluster.ray_job_submit(
        "python", "jobs/demo.py", "--output", s3_root,
        "--set", f"tracking.uri={server.url}", "--set", CONCURRENT, seconds=2 * SECONDS,
    )  # fmt: skip
    seconds = time.monotonic() - began
    assert job.returncode == 0, job.stdout[-3000:] + job.stderr[-3000:]
    print(f"\nthe demo as a job: {seconds:.0f} s")
    assert password not in job.stdout + job.stderr
    assert tracked(server) == {"FINISHED": 17}

    local = cluster.isoformer(
        "demo", "--output", str(tmp_path / "local"), "--set", CONCURRENT, "--json", seconds=2 * SECONDS
    )
    assert local.returncode == 0, local.stderr[-3000:]
    roots = (s3_root, str(tmp_path / "local"))
    there, here = (dict(values(json.loads(open_storage(root).read_bytes(TABLE)))) for root in roots)
    assert there.keys() == here.keys()
    for name, value in there.items():
        assert value == (pytest.approx(here[name], rel=TOLERANCE) if isinstance(value, float) else here[name])
    assert open_storage(s3_root).exists("reports/final.html")
    assert seconds < SECONDS


TABLE = "runs/final/evaluation.json"
TOLERANCE = 1e-9
"""Relative: Ray gives a job's process one thread for its sums, so that a ridge's last digits differ."""


def values(table: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All of a nested table by its path, but for what the clock says."""
    if isinstance(table, dict | list):
        for key, value in table.items() if isinstance(table, dict) else enumerate(table):
            yield from values(value, f"{name}.{key}")
    elif name not in (".seconds", ".created"):
        yield name, table


def tracked(server: LocalMlflow) -> dict[str, int]:
    """Runs by status: the sweep, its 15 trials, the final model."""
    with sqlite3.connect(server.folder / "server.db") as store:
        return dict(store.execute("select status, count(*) from runs group by status").fetchall())
