"""A real Prometheus on loopback for the tests, with the repository's own configuration pointed at one Ray."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

DASHBOARDS = Path(__file__).resolve().parents[2] / "dashboards"
SCRAPE_SECONDS = 3
"""And as long to answer, which a node's exporter on a busy machine may need."""


def program(name: str) -> str:
    """Its path; the test is skipped where it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: apt install prometheus)")
    return found


@dataclass(frozen=True)
class Prometheus:
    address: str

    def ask(self, path: str, **parameters: Any) -> Any:
        """`data` of an answer of the HTTP API."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.address}/api/v1/{path}?{query}", timeout=20) as answer:
            return json.load(answer)["data"]

    def samples(self, expr: str, start: float) -> list[float]:
        """Every value of an expression from `start` until now, of all its series."""
        found = self.ask("query_range", query=expr, start=start, end=time.time(), step=1)
        return [float(value) for series in found["result"] for _, value in series["values"]]


@contextmanager
def running(folder: Path, targets: Path) -> Iterator[Prometheus]:
    """Prometheus with dashboards/prometheus.yml and its rules, scraping what the file `targets` lists."""
    port = _free_port()
    config = yaml.safe_load((DASHBOARDS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": "2s"}
    config["rule_files"] = [str(DASHBOARDS / "alerts.yml")]
    ray = next(job for job in config["scrape_configs"] if job["job_name"] == "ray")
    ray["file_sd_configs"] = [{"files": [str(targets)], "refresh_interval": "1s"}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        program("prometheus"), f"--config.file={folder / 'prometheus.yml'}",
        f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={folder / 'data'}",
    ]  # fmt: skip
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        server = Prometheus(f"http://127.0.0.1:{port}")
        _wait_until_ready(server, process, folder / "prometheus.log")
        yield server
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_until_ready(server: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{server.address}/-/ready", timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"Prometheus did not start:\n{log.read_text()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
