"""The Dockerfile passes hadolint, pins what it takes, runs as a user, and fits the files beside it.

No image is built here: that needs a container engine.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.made_cloud import DEPLOY, ROOT, cluster_file
from isoformer import __version__

TEXT = (DEPLOY / "Dockerfile").read_text()
INSTRUCTIONS = [line for line in TEXT.splitlines() if line and not line.startswith(("#", " "))]


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [hadolint, "--failure-threshold", "style", DEPLOY / "Dockerfile"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_it_runs_as_the_user_that_the_pods_name() -> None:
    users = [line for line in INSTRUCTIONS if line.startswith("USER")]
    assert users == ["USER 1000:1000"]
    assert "useradd --uid 1000" in TEXT


def test_base_and_installer_are_pinned_and_the_lock_is_used() -> None:
    assert re.search(r"^ARG BASE=python:3\.11\.\d+-slim-\w+$", TEXT, re.MULTILINE)
    (version,) = re.findall(r"uv==([\d.]+)", (ROOT / "Makefile").read_text())
    installers = re.findall(r"uv==([\d.]+)", TEXT) + re.findall(
        r"uv==([\d.]+)", str(cluster_file()["setup_commands"])
    )
    assert installers == [version, version]
    assert "--constraints platform/requirements.lock" in TEXT
    assert set(re.findall(r"isoformer:([\d.]+)-(?:cpu|gpu)", TEXT)) == {__version__}


@pytest.mark.parametrize("line", [line for line in INSTRUCTIONS if line.startswith("COPY")])
def test_what_it_copies_is_there_and_sent_to_the_builder(line: str) -> None:
    sent = [one[1:] for one in (ROOT / ".dockerignore").read_text().splitlines() if one.startswith("!")]
    *sources, _ = line.split()[1:]
    for source in sources:
        assert (ROOT / source).exists()
        assert source.split("/")[0] in sent


def test_nothing_else_is_sent_to_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert next(line for line in lines if not line.startswith("#")) == "*"


def test_it_holds_no_secret() -> None:
    assert not re.search(r"(?i)password|secret|aws_|token", TEXT)
