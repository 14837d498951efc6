"""Tracking never holds up or stops the work, and loses nothing: proven on a sink that fails at will."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from isoformer.config import build
from isoformer.errors import ConfigError, StorageError
from isoformer.tracking import (
    Tracker,
    TrackingConfig,
    dataset_tags,
    flat_params,
    open_line,
    probe,
    replay,
    run_key,
)
from isoformer.tracking.journal import Event
from isoformer.tracking.sink import CredentialsError, RejectedError


class MemorySink:
    """A real, tiny sink: keeps what it gets, and fails while `down`; refuses metrics named `refused`."""

    def __init__(self, *, down: bool = False) -> None:
        self.down = down
        self.calls: list[list[Event]] = []
        self.files: dict[str, str] = {}

    def warm(self) -> None:
        pass

    def send(self, events: list[Event]) -> None:
        if self.down:
            raise ConnectionError("server is gone")
        if any("refused" in event.get("values", {}) for event in events):
            raise RejectedError("not this one")
        self.calls.append(list(events))
        self.files |= {event["file"]: Path(event["file"]).read_text() for event in events if "file" in event}

    @property
    def events(self) -> list[Event]:
        return [event for call in self.calls for event in call]


@pytest.fixture
def config(tmp_path: Path) -> TrackingConfig:
    return TrackingConfig(folder=str(tmp_path), retry_seconds=0.05, close_seconds=10)


def test_events_arrive_in_order_and_the_journal_goes_away(config: TrackingConfig) -> None:
    sink = MemorySink()
    with Tracker(config, sink=sink) as tracker:
        run = tracker.start_run("final", params={"learning_rate": "0.001"})
        for step in range(50):
            tracker.log_metrics(run, {"loss": 1 / (step + 1)}, step=step)
        tracker.end_run(run)
    assert [event["op"] for event in sink.events] == ["start"] + ["metrics"] * 50 + ["end"]
    assert [event["step"] for event in sink.events if event["op"] == "metrics"] == list(range(50))
    assert list(config.journal_folder.iterdir()) == []


def test_a_sink_that_fails_midway_gets_everything_once_it_is_back(
    config: TrackingConfig, caplog: pytest.LogCaptureFixture
) -> None:
    sink = MemorySink()
    with Tracker(config, sink=sink) as tracker:
        run = tracker.start_run("final")
        assert tracker.flush()
        sink.down = True
        for step in range(20):
            tracker.log_metrics(run, {"loss": 0.5}, step=step)
        assert not tracker.flush()
        time.sleep(0.3)
        sink.down = False
        tracker.end_run(run)
    assert [event["op"] for event in sink.events] == ["start"] + ["metrics"] * 20 + ["end"]
    assert caplog.text.count("does not answer") == 1, "one warning, not one an event"
    assert str(config.journal_folder) in caplog.text


def test_what_a_dead_sink_never_took_is_replayed(config: TrackingConfig) -> None:
    tracker = Tracker(config, sink=MemorySink(down=True))
    run = tracker.start_run("final", tags={"a": "b"})
    tracker.log_metrics(run, {"loss": 0.5}, step=3)
    assert tracker.close() == 2
    sink = MemorySink()
    report = replay(config, sink=sink)
    assert (report.sent, report.rejected, report.waiting) == (2, 0, 0)
    assert sink.events[0]["tags"]["a"] == "b" and sink.events[1]["values"] == {"loss": 0.5}
    assert replay(config, sink=sink).sent == 0
    assert len(sink.events) == 2


def test_the_next_tracker_sends_what_a_killed_one_left(config: TrackingConfig) -> None:
    killed = Tracker(config, sink=MemorySink(down=True))
    killed.start_run("killed")
    killed.close()
    sink = MemorySink()
    with Tracker(config, sink=sink) as tracker:
        tracker.start_run("next")
    assert [event["name"] for event in sink.events] == ["killed", "next"]
    assert not list(config.journal_folder.glob("*.jsonl"))


def test_replay_leaves_a_living_tracker_alone(config: TrackingConfig) -> None:
    tracker = Tracker(config, sink=MemorySink(down=True))
    tracker.start_run("final")
    assert replay(config, sink=MemorySink()).in_use == 1
    tracker.close()


def test_one_refused_metric_does_not_block_or_drop_its_neighbours(config: TrackingConfig) -> None:
    sink = MemorySink(down=True)
    with Tracker(config, sink=sink) as tracker:
        run = tracker.start_run("final")
        for step, name in enumerate(["loss", "refused", "score"]):
            tracker.log_metrics(run, {name: 1.0}, step=step)
        sink.down = False
    assert [list(event["values"]) for event in sink.events if event["op"] == "metrics"] == [
        ["loss"],
        ["score"],
    ]


def test_events_are_collected_and_go_off_together(config: TrackingConfig) -> None:
    sink = MemorySink()
    with Tracker(config.edited(batch_seconds=60.0), sink=sink) as tracker:
        run = tracker.start_run("final")
        for step in range(5):
            tracker.log_metrics(run, {"loss": 1.0}, step=step)
            time.sleep(0.01)
        assert sink.calls == [], "they wait for more"
        assert tracker.flush(5), "but not where somebody waits for them"
        assert [len(call) for call in sink.calls] == [6]


def test_one_failure_is_no_outage(config: TrackingConfig, caplog: pytest.LogCaptureFixture) -> None:
    class HiccupSink(MemorySink):
        def send(self, events: list[Event]) -> None:
            failed, self.down = self.down, False
            if failed:
                raise ConnectionError("an idle connection was closed")
            super().send(events)

    sink = HiccupSink(down=True)
    with Tracker(config, sink=sink) as tracker:
        tracker.start_run("final")
        assert tracker.flush()
    assert len(sink.events) == 1 and caplog.text == ""


def test_refused_credentials_are_said_once_and_named(
    config: TrackingConfig, caplog: pytest.LogCaptureFixture
) -> None:
    class LockedSink(MemorySink):
        def send(self, events: list[Event]) -> None:
            raise CredentialsError("401")

    tracker = Tracker(config, sink=LockedSink())
    run = tracker.start_run("final")
    for _ in range(3):
        tracker.log_metrics(run, {"loss": 1.0})
        assert not tracker.flush()
    assert caplog.text.count("refuses the credentials") == 1
    assert "MLFLOW_TRACKING_USERNAME" in caplog.text and "mlflow.db" in caplog.text
    assert tracker.close() == 4


def test_only_a_key_that_is_new_goes_without_a_search(config: TrackingConfig) -> None:
    killed = Tracker(config, sink=MemorySink(down=True))
    killed.start_run("made here")
    killed.start_run("made for us", key="a", is_new=True)
    killed.start_run("opened again", key="b")
    killed.close()
    lines = next(config.journal_folder.glob("*.jsonl")).read_text().splitlines()
    assert [json.loads(line)["new"] for line in lines] == [True, True, False]
    sink = MemorySink()
    replay(config, sink=sink)
    assert not any("new" in event for event in sink.events), "the killed process may have sent them"


def test_calls_return_at_once_while_the_sink_hangs(config: TrackingConfig) -> None:
    class SlowSink(MemorySink):
        def warm(self) -> None:
            time.sleep(0.5)

    start = time.perf_counter()
    tracker = Tracker(config, sink=SlowSink())
    run = tracker.start_run("final")
    tracker.log_metrics(run, {"loss": 1.0})
    assert time.perf_counter() - start < 0.3
    assert tracker.close() == 0


def test_a_file_may_be_deleted_as_soon_as_it_is_logged(config: TrackingConfig, tmp_path: Path) -> None:
    source = tmp_path / "config.yaml"
    source.write_text("a: 1")
    sink = MemorySink()
    with Tracker(config, sink=sink) as tracker:
        run = tracker.on_run(tracker.start_run("final"))
        run.log_artifact(source)
        source.unlink()
        run.set_tags({"a": "b"})
        run.log_metrics({"loss": 0.5}, 3)
    copied = Path(sink.events[1]["file"])
    assert copied.name == "config.yaml" and sink.files[str(copied)] == "a: 1"
    assert not copied.exists()
    assert [event["op"] for event in sink.events] == ["start", "file", "tags", "metrics"]


def test_more_than_twenty_metric_keys_are_refused(config: TrackingConfig) -> None:
    with Tracker(config, sink=MemorySink()) as tracker:
        run = tracker.start_run("final")
        tracker.log_metrics(run, {f"metric_{index}": 0.0 for index in range(20)})
        with pytest.raises(ValueError, match=r"21 metric keys, allowed are 20"):
            tracker.log_metrics(run, {"one_more": 0.0})


def test_other_ranks_write_nothing(config: TrackingConfig) -> None:
    with Tracker(config, rank=1) as tracker:
        run = tracker.start_run("final")
        tracker.log_metrics(run, {"loss": 1.0})
        assert tracker.flush()
    assert not config.journal_folder.exists()


def test_open_line_names_the_store_and_stays_on_loopback(config: TrackingConfig) -> None:
    line = open_line(config)
    assert f"sqlite:///{config.folder}/mlflow.db" in line and "--host 127.0.0.1" in line
    assert open_line(TrackingConfig(uri="http://tracker:5000")) == "http://tracker:5000"


def test_the_default_store_lies_in_a_local_root_but_not_in_a_bucket(tmp_path: Path) -> None:
    assert TrackingConfig().for_root(str(tmp_path)).local_folder == tmp_path
    assert TrackingConfig().for_root(f"file://{tmp_path}").local_folder == tmp_path
    assert TrackingConfig().for_root("s3://bucket/x").local_folder.name == "isoformer-work"


def test_a_password_in_the_address_is_not_shown() -> None:
    config = TrackingConfig(uri="postgresql://anna:secret@tracker.example/runs")
    assert config.shown_uri == "postgresql://anna:***@tracker.example/runs"


def test_an_unknown_address_is_refused_at_the_door() -> None:
    with pytest.raises(ConfigError, match="uri"):
        build(TrackingConfig, {"uri": "ftp://somewhere"})


def test_tags_and_params_say_what_the_numbers_rest_on() -> None:
    tags = dataset_tags("abc", {"rna": "ntv2-tiny-rna.1.pooled.f16.2"}, "measured GTEx gene mean TPM")
    assert tags["data_fingerprint"] == "abc" and tags["encoder_key.rna"].startswith("ntv2-tiny-rna")
    assert "+" in tags["code_version"]
    assert flat_params({"model": {"heads": 4}, "seed": 0}) == {"model.heads": "4", "seed": "0"}


def test_training_and_evaluation_of_a_folder_are_one_run(tmp_path: Path) -> None:
    assert run_key(str(tmp_path), "final") == run_key(f"file://{tmp_path}", "final")
    assert run_key(str(tmp_path), "final") != run_key(str(tmp_path), "other")
    assert run_key("s3://bucket/a/", "final") == run_key("s3://bucket/a", "final")


def test_probe_says_where_no_server_answers(tmp_path: Path) -> None:
    config = TrackingConfig(uri="http://127.0.0.1:9", folder=str(tmp_path))
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:9"):
        probe(config, str(tmp_path))
