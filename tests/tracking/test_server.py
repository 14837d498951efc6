"""Against a real `mlflow server`: few requests a run, and nothing lost when it is killed in the middle."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from isoformer.benchmark.local_mlflow import LocalMlflow
from isoformer.tracking import Tracker, TrackingConfig, replay, run_links
from tracking.made_runs import client_of, end_trial, everything_of, log_epochs, runs_of, start_trial


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalMlflow]:
    with LocalMlflow(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def config(server: LocalMlflow, tmp_path: Path, request: pytest.FixtureRequest) -> TrackingConfig:
    """An experiment a test."""
    name = request.node.name
    return TrackingConfig(
        uri=server.url, experiment=name, folder=str(tmp_path), retry_seconds=0.5, close_seconds=100
    )


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "tissues.csv"
    path.write_text("tissue,r2\nLiver,0.5\n")
    return path


def test_a_trial_takes_four_requests_and_one_for_its_file(
    config: TrackingConfig, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    send = requests.Session.send

    def counted(self: requests.Session, request: Any, **options: Any) -> Any:
        sent.append(f"{request.method} {request.path_url.partition('?')[0].rpartition('/')[2]}")
        return send(self, request, **options)

    monkeypatch.setattr(requests.Session, "send", counted)
    with Tracker(config) as tracker:
        parent = tracker.start_run("sweep")
        assert tracker.flush()
        sent.clear()
        for number in range(4):
            run = start_trial(tracker, f"trial-{number}", parent=parent)
            log_epochs(tracker, run, range(20))
            end_trial(tracker, run, table)
    expected = {"create": 4, "log-batch": 4, "log-inputs": 4, "config.yaml": 4, "tissues.csv": 4, "update": 4}
    counts = {name: sum(one.endswith(f" {name}") for one in sent) for name in expected}
    assert counts == expected
    assert len(sent) == sum(expected.values()), sent
    assert everything_of(config, "trial-3")["metrics"]["score"] == [(step, step + 0.25) for step in range(20)]


def test_links_of_a_server_lead_to_it(config: TrackingConfig, server: LocalMlflow) -> None:
    with Tracker(config) as tracker:
        key = tracker.start_run("linked")
    run = runs_of(config)["linked"].info
    assert run_links(config, [key]) == {
        key: f"{server.url}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
    }


@pytest.mark.slow
def test_a_server_killed_while_metrics_flow_loses_nothing(
    server: LocalMlflow, config: TrackingConfig, table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Tracker(config) as tracker:
        undisturbed = start_trial(tracker, "undisturbed")
        log_epochs(tracker, undisturbed, range(400))
        end_trial(tracker, undisturbed, table)
    caplog.clear()

    tracker = Tracker(config.edited(batch_seconds=0.0))
    run = start_trial(tracker, "disturbed")
    killer = threading.Timer(0.7, server.kill)
    killer.start()
    slowest = 0.0
    for epoch in range(300):
        start = time.perf_counter()
        log_epochs(tracker, run, range(epoch, epoch + 1))
        slowest = max(slowest, time.perf_counter() - start)
        time.sleep(0.005)
    killer.join()
    assert not tracker.flush(), "the server is dead"
    born_dead = start_trial(tracker, "born-dead")
    log_epochs(tracker, run, range(300, 400))
    for one in (run, born_dead):
        end_trial(tracker, one, table)
    waiting = tracker.waiting
    assert slowest < 1, "the work does not wait for a dead server"
    assert 100 < tracker.close() == waiting < 415
    assert caplog.text.count("does not answer") == 1

    server.start()
    report = replay(config)
    assert (report.sent, report.waiting, report.refusals) == (waiting, 0, ())
    assert everything_of(config, "disturbed") == everything_of(config, "undisturbed") | {
        "artifacts": {"config.yaml": "run: disturbed\n", "tables/tissues.csv": table.read_text()}
    }
    assert everything_of(config, "born-dead")["status"] == "FINISHED"
    assert len(runs_of(config)) == 3
    assert not list(config.journal_folder.rglob("*.*")), "journals and copies of files are gone"


@pytest.mark.slow
def test_an_answer_that_is_lost_makes_no_second_run(
    config: TrackingConfig, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every request of the first tries arrives, and its answer does not."""
    lost = [0]
    send = requests.Session.send

    def deaf(self: requests.Session, request: Any, **options: Any) -> Any:
        answer = send(self, request, **options)
        if request.method in ("POST", "PUT") and lost[0] < 6:
            lost[0] += 1
            raise requests.ConnectionError("the answer was lost")
        return answer

    with Tracker(config.edited(retry_seconds=0.05)) as tracker:
        assert tracker.flush()
        tracker.end_run(tracker.start_run("before"))
        assert tracker.flush()
        monkeypatch.setattr(requests.Session, "send", deaf)
        run = start_trial(tracker, "lost-answers")
        log_epochs(tracker, run, range(5))
        end_trial(tracker, run, table)
        assert any(tracker.flush() for _ in range(10))
    found = everything_of(config, "lost-answers")
    assert lost[0] == 6
    assert set(runs_of(config)) == {"before", "lost-answers"}
    assert found["metrics"]["val_r2"] == [(step, step + 0.25) for step in range(5)]
    assert len(found["inputs"]) == 1 and found["status"] == "FINISHED"


def test_a_dataset_is_shown_as_used(config: TrackingConfig) -> None:
    with Tracker(config) as tracker:
        run = tracker.start_run("reader")
        profile = {"transcripts": 12}
        tracker.log_input(
            run, name="transcripts", digest="a" * 40, source="/data", details={"profile": profile}
        )
    (used,) = runs_of(config)["reader"].inputs.dataset_inputs
    assert used.dataset.name == "transcripts" and used.dataset.digest == "a" * 36
    assert (used.dataset.source_type, used.dataset.source) == ("local", '{"uri": "/data"}')
    assert used.dataset.profile == '{"transcripts": 12}'
    assert {tag.key: tag.value for tag in used.tags} == {"mlflow.data.context": "train"}
    client = client_of(config)
    assert client.get_run(runs_of(config)["reader"].info.run_id).info.status == "RUNNING"
