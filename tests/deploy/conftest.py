"""One account in memory for the tests of cluster.yaml: making it takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy.made_cloud import Cloud, made_cloud


@pytest.fixture(scope="session")
def cloud(aws_environment: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with made_cloud(tmp_path_factory.mktemp("home")) as cloud:
        yield cloud
