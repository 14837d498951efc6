"""Fixtures that several areas share: one local Ray for the session, one real S3 server where asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from isoformer.ray_session import RayConfig, ray_session

pytest_plugins = ["services"]


@pytest.fixture(scope="session")
def ray_local(aws_environment: Path) -> Iterator[None]:
    """A private Ray on loopback, started once: starting one takes about ten seconds."""
    with ray_session(RayConfig(num_cpus=4, object_store_mb=200)):
        yield
