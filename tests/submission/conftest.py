"""A fresh two-node cluster with a token of its own, as `isoformer cluster up` starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services import S3Server

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
MINUTES = 60.0


@dataclass(frozen=True)
class Cluster:
    """`environment`: of a client who has the token, and of everything that the cluster runs."""

    dashboard: str
    pid: int
    environment: Mapping[str, str]

    def isoformer(self, *arguments: str, seconds: float = 3 * MINUTES, **changes: str) -> Any:
        return finished([str(BIN / "isoformer"), *arguments], {**self.environment, **changes}, seconds)

    def ray_job_submit(self, *command: str, seconds: float = 3 * MINUTES, **changes: str) -> Any:
        """As the README has it: the repository's jobs, the package beside them."""
        shipped = json.dumps({"env_vars": {"PYTHONPATH": "platform"}})
        line = [str(BIN / "ray"), "job", "submit", "--address", self.dashboard, "--working-dir", str(ROOT)]
        line += ["--runtime-env-json", shipped, "--", *command]
        return finished(line, {**self.environment, "RAY_AUTH_MODE": "token", **changes}, seconds)


def finished(command: list[str], environment: Mapping[str, str], seconds: float) -> Any:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)


def started_cluster(folder: Path, **environment: str) -> Cluster:
    own = {"ISOFORMER_CACHE": str(folder), "RAY_AUTH_TOKEN_PATH": str(folder / "token"), **environment}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    whole = {**kept, **own}
    up = finished([str(BIN / "isoformer"), "cluster", "up", "--port", "0", "--json"], whole, 10 * MINUTES)
    assert up.returncode == 0, up.stderr
    said = json.loads(up.stdout)
    return Cluster(said["dashboard"], said["pid"], whole)


@pytest.fixture(scope="module")
def cluster(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = started_cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.isoformer("cluster", "down")
