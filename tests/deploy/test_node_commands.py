"""The commands of cluster.yaml that need no network, run as Ray's launcher runs them, in a made home folder.

`ray` is a script that writes down how it was called and what was in its environment. PATH holds no other: the
commands call `ray stop`, which would end every Ray of this machine.
"""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from deploy.made_cloud import cluster_file

RAY = """#!/bin/bash
echo "$@" >> ~/calls
env > ~/environment
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A node after Ray has carried the files there, and after the installation."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".bashrc").touch()
    (tmp_path / ".ray/auth_token").write_text("made-up")
    (tmp_path / "isoformer.env").write_text("AWS_DEFAULT_REGION=eu-west-1\n# a comment\nPGPASSWORD=made-up\n")
    ray = tmp_path / "isoformer/.venv/bin/ray"
    ray.parent.mkdir(parents=True)
    ray.write_text(RAY)
    ray.chmod(0o755)
    return tmp_path


def run(command: str, home: Path) -> None:
    """As `ray.autoscaler` does over SSH: a login shell that reads ~/.bashrc, with one thread set."""
    wrapped = f"source ~/.bashrc; export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore && ({command})"
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "RAY_HEAD_IP": "10.0.0.1"}
    subprocess.run(["bash", "-c", wrapped], env=environment, check=True)


def set_up(home: Path) -> None:
    close_files, *_, write_bashrc = cluster_file()["setup_commands"]
    run(close_files, home)
    run(write_bashrc, home)


def test_the_secret_files_are_closed_to_other_users(home: Path) -> None:
    set_up(home)
    for name in (".ray/auth_token", "isoformer.env"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600


def test_set_up_twice_is_set_up_once(home: Path) -> None:
    set_up(home)
    set_up(home)
    assert len((home / ".bashrc").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "begins"),
    [
        ("head_start_ray_commands", "start --head"),
        ("worker_start_ray_commands", "start --address=10.0.0.1:6379"),
    ],
)
def test_ray_starts_with_token_credentials_and_all_threads(home: Path, kind: str, begins: str) -> None:
    set_up(home)
    for command in cluster_file()[kind]:
        run(command, home)
    stopped, started = (home / "calls").read_text().splitlines()
    assert stopped == "stop"
    assert started.startswith(begins)
    environment = dict(line.split("=", 1) for line in (home / "environment").read_text().splitlines())
    wanted = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": f"{home}/.ray/auth_token",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "PGPASSWORD": "made-up",
    }
    assert wanted.items() <= environment.items()
    assert environment["PATH"].startswith(f"{home}/isoformer/.venv/bin:")
    assert "OMP_NUM_THREADS" not in environment


def test_every_command_is_valid_shell() -> None:
    cluster = cluster_file()
    for kind in (
        "initialization_commands",
        "setup_commands",
        "head_start_ray_commands",
        "worker_start_ray_commands",
    ):
        for command in cluster[kind]:
            assert subprocess.run(["bash", "-n", "-c", command]).returncode == 0, command
