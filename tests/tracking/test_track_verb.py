"""`isoformer track`: what waits is named and counted, and sent once the store answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from isoformer.cli import main
from isoformer.tracking import Tracker, TrackingConfig
from isoformer.tracking.journal import Event


class GoneSink:
    """A server that is gone."""

    def warm(self) -> None:
        pass

    def send(self, events: list[Event]) -> None:
        raise ConnectionError("server is gone")


def track(
    action: str, folder: Path, capsys: pytest.CaptureFixture[str], *settings: str
) -> tuple[int, dict[str, Any]]:
    """Exit status and what is printed."""
    chosen = [f"root={folder}", "tracking.retry_seconds=0.1", *settings]
    with pytest.raises(SystemExit) as ended:
        main(["track", action, "--json", *(part for text in chosen for part in ("--set", text))])
        raise SystemExit(0)
    return int(ended.value.code or 0), json.loads(capsys.readouterr().out)


def leave_events(folder: Path) -> None:
    """A run that no server took: a start, a metric, an end, and a metric of a run that nobody started."""
    with Tracker(TrackingConfig(folder=str(folder), retry_seconds=0.05), sink=GoneSink()) as tracker:
        run = tracker.start_run("left", key="left-behind", params={"heads": "4"})
        tracker.log_metrics(run, {"loss": 0.5}, step=1)
        tracker.log_metrics("never-started", {"loss": 0.5})
        tracker.end_run(run)


def test_what_waits_is_counted_then_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, found = track("status", tmp_path, capsys)
    assert (status, found["waiting"], found["journals"]) == (0, 0, [])
    assert not list(tmp_path.iterdir()), "asking makes no store"

    leave_events(tmp_path)
    status, found = track("status", tmp_path, capsys)
    assert (status, found["waiting"], found["answers"]) == (1, 4, True)
    assert found["journals"][0]["events"] == {"start": 1, "metrics": 2, "end": 1}
    assert found["journals"][0]["runs"] == 2 and not found["journals"][0]["in_use"]

    status, found = track("replay", tmp_path, capsys, "tracking.close_seconds=200")
    assert (status, found["sent"], found["waiting"]) == (0, 3, 0)
    assert [(one["op"], one["run"]) for one in found["refusals"]] == [("metrics", "never-started")]
    assert "has no run tagged" in found["refusals"][0]["reason"]

    status, found = track("status", tmp_path, capsys)
    assert (status, found["waiting"]) == (0, 0)
    assert "holds 1 run(s)" in found["answer"]
    assert [one["run"] for journal in found["journals"] for one in journal["refusals"]] == ["never-started"]
    assert track("replay", tmp_path, capsys)[1]["sent"] == 0


def test_a_store_that_does_not_answer_leaves_them_waiting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_events(tmp_path)
    gone = "tracking.uri=http://127.0.0.1:9"
    status, found = track("replay", tmp_path, capsys, gone)
    assert (status, found["sent"], found["waiting"]) == (1, 0, 4)
    status, found = track("status", tmp_path, capsys, gone)
    assert (status, found["waiting"], found["answers"]) == (1, 4, False)
    assert "127.0.0.1:9" in found["answer"]


def test_a_live_run_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker(TrackingConfig(folder=str(tmp_path), retry_seconds=0.05), sink=GoneSink())
    tracker.start_run("alive")
    assert track("replay", tmp_path, capsys)[1]["in_use"] == 1
    status, found = track("status", tmp_path, capsys)
    assert status == 1 and found["journals"][0]["in_use"]
    tracker.close()
