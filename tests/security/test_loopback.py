"""What we start listens on loopback alone: seen at the processes' sockets, not at their options."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from isoformer.benchmark.local_mlflow import LocalMlflow
from isoformer.sweep.study import open_study_line
from isoformer.tracking import TrackingConfig, open_line
from services import S3Server

EVERY_INTERFACE = """
import socket, sys
server = socket.create_server(("", 0))
print("up", flush=True)
sys.stdin.read()
"""
RAY = """
import os, sys
from isoformer.ray_session import RayConfig, ray_session
with ray_session(RayConfig(num_cpus=2)):
    import ray
    ray.get(ray.remote(num_cpus=0)(lambda: os.getpid()).remote())
    print("up", flush=True)
    sys.stdin.read()
"""


def listening(pid: int) -> dict[str, list[str]]:
    """Addresses that a process and those it started listen at, by name of the process."""
    process = psutil.Process(pid)
    found: dict[str, list[str]] = {}
    for one in [process, *process.children(recursive=True)]:
        try:
            sockets = [item for item in one.net_connections("inet") if item.status == psutil.CONN_LISTEN]
            found.setdefault(one.name(), []).extend(item.laddr.ip for item in sockets)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def outside(found: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [
        (name, address)
        for name, addresses in found.items()
        for address in addresses
        if not ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback
    ]


@contextmanager
def running(source: str) -> Iterator[int]:
    """A Python process that says `up` when what it starts is there, and ends when its input does."""
    command = [sys.executable, "-c", source]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process.pid
        process.stdin.close()
        process.wait(timeout=60)


def test_a_socket_on_every_interface_is_seen() -> None:
    with running(EVERY_INTERFACE) as pid:
        assert outside(listening(pid))


def test_a_local_ray() -> None:
    with running(RAY) as pid:
        found = listening(pid)
    assert {"gcs_server", "raylet"} <= set(found) and sum(map(len, found.values())) >= 3, found
    assert outside(found) == []


def test_the_tests_own_s3_server(s3_server: S3Server) -> None:
    found = {name: ips for name, ips in listening(os.getpid()).items() if name == "weed"}
    assert found["weed"]
    assert outside(found) == []


@pytest.mark.long
def test_an_mlflow_server(tmp_path: Path) -> None:
    with LocalMlflow(tmp_path) as server:
        assert server.process is not None
        found = listening(server.process.pid)
        assert sum(map(len, found.values())) >= 1
        assert outside(found) == []


def test_the_commands_that_we_print(tmp_path: Path) -> None:
    assert "--host 127.0.0.1" in open_line(TrackingConfig(folder=str(tmp_path)))
    study = open_study_line(tmp_path / "study.db")
    assert study.startswith("optuna-dashboard ") and "--host" not in study, "its default is 127.0.0.1"
