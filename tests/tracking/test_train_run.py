"""What a training run tells MLflow beside its scores: its dataset and its machine, and no password."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from isoformer import stages
from isoformer.config import build
from isoformer.console import Output
from isoformer.errors import ConfigError, StorageError
from isoformer.manifest import read_manifest
from isoformer.settings import Settings, load_settings
from isoformer.storage import open_storage
from isoformer.tracking import Tracker, TrackingConfig, open_line, probe, replay, tracking_status
from isoformer.training.config import TrainConfig
from tiny_dataset import write_dataset
from tracking.made_runs import runs_of

SECRET = "planted-Pa55word"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    write_dataset(str(folder))
    return folder


@pytest.fixture
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of Ray Train: half a second of work, and an epoch's metrics."""

    def train(config: TrainConfig, root: str, *, tracker: Any, **options: Any) -> str:
        time.sleep(0.5)
        tracker.log_metrics({f"metric_{number}": 0.5 for number in range(14)}, 0)
        return "trained"

    monkeypatch.setattr("isoformer.training.train.train", train)


def train_once(settings: Settings) -> None:
    with Tracker(settings.tracking.for_root(settings.root)) as tracker:
        stages._train_one(settings, settings.train, Output(as_json=True), tracker, run="final", resume=False)


def test_a_run_names_its_dataset_and_samples_its_machine(root: Path, short_training: None) -> None:
    tracking = {"system_metrics_seconds": 0.1, "close_seconds": 200}
    settings = build(Settings, {"root": str(root), "tracking": tracking})
    train_once(settings)
    run = runs_of(settings.tracking.for_root(str(root)))["final"]
    (used,) = run.inputs.dataset_inputs
    manifest = read_manifest(open_storage(root))
    assert (used.dataset.name, used.dataset.digest) == ("transcripts", manifest.fingerprint[:36])
    assert json.loads(used.dataset.source) == {"uri": str(root)}
    assert json.loads(used.dataset.profile)["transcripts"] == manifest.counts.rows_out
    assert {"name": "rna", "type": "string"} in json.loads(used.dataset.schema)["mlflow_colspec"]
    sampled = {name: value for name, value in run.data.metrics.items() if name.startswith("system/")}
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(sampled)
    assert len(sampled) <= 6 and sampled["system/system_memory_usage_megabytes"] > 10
    assert len(run.data.metrics) == 14 + len(sampled)


def test_samples_come_at_their_time_and_one_at_the_end(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    class KeepingSink:
        def warm(self) -> None:
            pass

        def send(self, events: list[dict[str, Any]]) -> None:
            seen.extend(events)

    with Tracker(
        TrackingConfig(folder=str(tmp_path), system_metrics_seconds=60.0), sink=KeepingSink()
    ) as tracker:
        run = tracker.start_run("short")
        with tracker.system_metrics(run):
            pass
        with tracker.system_metrics(tracker.start_run("raises")), pytest.raises(KeyError):
            raise KeyError
    samples = [event for event in seen if event["op"] == "metrics"]
    assert [(event["run"] == run, event["step"]) for event in samples] == [(True, 0), (False, 0)]
    off = TrackingConfig(folder=str(tmp_path), system_metrics_seconds=None)
    with Tracker(off, sink=KeepingSink()) as tracker, tracker.system_metrics(tracker.start_run("off")):
        pass
    assert len([event for event in seen if event["op"] == "metrics"]) == 2


def test_a_databases_password_is_nowhere(
    root: Path,
    tmp_path: Path,
    short_training: None,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    uri = f"postgresql+psycopg://anna:{SECRET}@127.0.0.1:9/runs?connect_timeout=2"
    tracking = {"uri": uri, "folder": str(tmp_path), "retry_seconds": 0.1, "close_seconds": 60}
    settings = build(Settings, {"root": str(root), "tracking": tracking})
    assert settings.tracking.resolved_uri == uri and settings.edited(run="other").tracking.resolved_uri == uri
    train_once(settings)
    report = replay(settings.tracking)
    status = tracking_status(settings.tracking)
    assert report.waiting == status.waiting > 4 and not status.answers
    with pytest.raises(StorageError) as unanswered:
        probe(settings.tracking, str(root))
    said = [caplog.text, *capsys.readouterr(), str(unanswered.value), repr(settings), str(settings.tracking)]
    said += [open_line(settings.tracking), repr(status), settings.model_dump_json()]
    assert "does not answer" in caplog.text and "anna:***@127.0.0.1:9" in caplog.text
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("anna:***@" in text for text in written), "the configuration is an artefact"
    assert not [text for text in (*said, *written) if SECRET in text]


def test_a_servers_password_is_refused_and_not_repeated() -> None:
    override = f"tracking.uri=https://anna:{SECRET}@tracker.example"
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD") as refused:
        load_settings(None, [override])
    assert SECRET not in str(refused.value) and "anna:***@tracker.example" in str(refused.value)
    with pytest.raises(ValueError) as raised:
        TrackingConfig(uri=f"http://{SECRET}@tracker.example")
    assert SECRET not in str(raised.value)
