"""The journal keeps every event that MLflow has not acknowledged, whatever kills its owner."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest

from isoformer.tracking.journal import Journal, read_outstanding


def test_acknowledged_events_are_not_outstanding(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path)
    events = [journal.write({"op": "metrics", "run": "a", "step": step}) for step in range(3)]
    journal.acknowledge(events[:2])
    assert [event["step"] for event in journal.outstanding] == [2]
    assert list(read_outstanding(journal.path)) == [2]


def test_a_journal_with_nothing_outstanding_leaves_no_file(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path)
    journal.acknowledge([journal.write({"op": "end", "run": "a"})])
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_a_rejected_event_stays_readable_with_its_reason(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path)
    journal.reject(journal.write({"op": "end", "run": "a"}), "no such run")
    journal.close()
    assert read_outstanding(journal.path) == {}
    assert json.loads(journal.path.read_text().splitlines()[-1])["reason"] == "no such run"


def test_a_line_torn_by_a_kill_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal.create(tmp_path)
    journal.write({"op": "start", "run": "a"})
    with journal.path.open("a") as stream:
        stream.write('{"seq": 1, "op": "met')
    assert list(read_outstanding(journal.path)) == [0]
    assert "torn" in caplog.text


def test_a_journal_in_use_cannot_be_adopted(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path)
    journal.write({"op": "start", "run": "a"})
    assert Journal.adopt(journal.path) is None
    journal.close()
    adopted = Journal.adopt(journal.path)
    assert adopted is not None and [event["op"] for event in adopted.outstanding] == ["start"]
    assert adopted.write({"op": "end", "run": "a"})["seq"] == 1
    adopted.close()


def test_a_folder_that_cannot_be_written_is_said_and_events_live_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    journal = Journal.create(in_the_way / "journal")
    journal.write({"op": "start", "run": "a"})
    assert "cannot be written" in caplog.text
    assert len(journal.outstanding) == 1


def test_a_journal_that_is_taken_over_stays_where_the_copy_finds_no_room(tmp_path: Path) -> None:
    left = Journal.create(tmp_path)
    left.write({"op": "start", "run": "a"})
    left.close()
    journal = Journal.create(tmp_path)
    with suppress(OSError), open("/dev/full", "w") as journal._stream:  # closing it finds no room either
        assert journal.take_over() == (1, 0)
    assert [event["op"] for event in journal.outstanding] == ["start"]
    assert list(read_outstanding(left.path)) == [0], "on disk still, for the next one"


def test_a_file_that_cannot_be_copied_leaves_nothing(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "journal")
    with pytest.raises(OSError):
        journal.copy_file(tmp_path / "nothing")
    assert not list((tmp_path / "journal").rglob("files/*"))
