"""An account in memory for each file of tests that asks for it; while it is there, S3 is moto's too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy.made_cloud import Cloud, made_cloud


@pytest.fixture(scope="module")
def cloud(aws_environment: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with made_cloud(tmp_path_factory.mktemp("home")) as cloud:
        yield cloud
