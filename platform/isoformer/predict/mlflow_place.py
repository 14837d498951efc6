"""Which MLflow a block of code speaks to: MLflow's own calls look at one global address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from isoformer.tracking.sink import quiet_environment


@contextmanager
def mlflow_at(uri: str | None) -> Iterator[None]:
    """Tracking server and registry for the length of the block; null leaves what is set."""
    quiet_environment()
    import mlflow

    if uri is None:
        yield
        return
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
