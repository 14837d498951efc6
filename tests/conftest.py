"""Fixtures that several areas share: one local Ray for the session, one real S3 server where asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from isoformer.ray_session import RayConfig, ray_session

pytest_plugins = ["services"]


def pytest_configure() -> None:
    """Tests beside each other share the cores: more threads than these wait for one another."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        import torch

        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))


@pytest.fixture(scope="session")
def ray_local(aws_environment: Path) -> Iterator[None]:
    """A private Ray on loopback, started once: starting one takes about ten seconds."""
    with ray_session(RayConfig(num_cpus=4, object_store_mb=200)):
        yield
