"""Our keys of runs become pages of MLflow's UI; a store that is not there makes none, and no error."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from isoformer.tracking import Tracker, TrackingConfig, run_links


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    """Three runs in a SQLite store."""
    config = TrackingConfig(folder=str(tmp_path_factory.mktemp("links")), close_seconds=200)
    with Tracker(config) as tracker:
        for name in ("one", "two", "three"):
            tracker.end_run(tracker.start_run(name, key=f"key-{name}"))
    return config


def test_a_known_key_is_the_page_of_its_run(store: TrackingConfig) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store.resolved_uri)
    experiment = client.get_experiment_by_name(store.experiment)
    assert experiment is not None
    ids = {run.info.run_name: run.info.run_id for run in client.search_runs([experiment.experiment_id])}
    page = f"http://127.0.0.1:5000/#/experiments/{experiment.experiment_id}/runs"
    links = run_links(store, ["key-one", "key-three", "key-unknown"])
    assert links == {"key-one": f"{page}/{ids['one']}", "key-three": f"{page}/{ids['three']}"}


def test_pages_are_followed_to_the_last(store: TrackingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isoformer.tracking.links.RUNS_A_PAGE", 1)
    assert run_links(store, ["key-one", "key-two", "key-three"]).keys() == {"key-one", "key-two", "key-three"}


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert run_links(TrackingConfig(folder=str(tmp_path)), ["key-one"]) == {}
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_gone_makes_no_links(tmp_path: Path) -> None:
    assert run_links(TrackingConfig(uri="http://127.0.0.1:9", folder=str(tmp_path)), ["key-one"]) == {}


def test_a_server_that_hangs_is_left_after_the_time_given(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        config = TrackingConfig(uri=f"http://127.0.0.1:{silent.getsockname()[1]}", folder=str(tmp_path))
        start = time.perf_counter()
        assert run_links(config, ["key-one"], timeout_seconds=0.5) == {}
    assert time.perf_counter() - start < 5


def test_the_ui_of_a_server_is_the_server() -> None:
    assert TrackingConfig(uri="http://tracker:5000/mlflow/").ui_address == "http://tracker:5000/mlflow"
