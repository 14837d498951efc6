"""Journals that were damaged or edited: what is whole is read, the rest left out, nothing else is deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from isoformer.tracking import TrackingConfig, tracking_status
from isoformer.tracking.journal import Journal, read_journal

WHOLE = b'{"seq": 0, "op": "metrics", "run": "a"}\n'


@pytest.mark.parametrize(
    "line",
    [
        b"3", b"[]", b"{}", b"null", b"\xff\xfe", b"[" * 100_000, b'{"op": "metrics"}', b'{"done": [0]}',
        b'{"seq": "0", "op": "x", "run": "a"}', b'{"seq": 1, "op": 3, "run": "a"}', b'{"rejected": 0}',
        b'{"rejected": 0, "reason": 3}',
    ],
)  # fmt: skip
def test_a_line_that_says_nothing_is_left_out(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "old.jsonl"
    path.write_bytes(line + b"\n" + WHOLE + line)
    events, refusals = read_journal(path)
    assert (list(events), refusals) == ([0], [])
    assert Journal.create(tmp_path).take_over() == (1, 0)


def test_the_status_of_a_damaged_journal_is_told(tmp_path: Path) -> None:
    config = TrackingConfig(folder=str(tmp_path))
    config.journal_folder.mkdir()
    (config.journal_folder / "old.jsonl").write_bytes(b"\xff\n3\n" + WHOLE)
    assert tracking_status(config).waiting == 1


def test_no_folder_is_deleted_that_a_line_calls_a_copy(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "journal")
    source = tmp_path / "mine" / "work.txt"
    source.parent.mkdir()
    source.write_text("mine")
    copy = journal.copy_file(source)
    for named in (str(source), str(tmp_path / "journal" / "files" / "x" / ".." / ".." / "y" / "z"), ""):
        journal.acknowledge([journal.write({"op": "file", "run": "a", "file": named})])
    journal.acknowledge([journal.write({"op": "file", "run": "a"})])
    assert source.exists() and copy.exists()
    journal.acknowledge([journal.write({"op": "file", "run": "a", "file": str(copy)})])
    assert not copy.parent.exists() and source.exists()
