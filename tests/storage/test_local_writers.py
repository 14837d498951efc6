"""What a folder promises while several processes write it and are killed."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

import pytest
import torch
from ray.exceptions import RayTaskError

from isoformer.storage import LocalStorage, full_disk, open_storage

WRITERS, KILLS = 6, 20
RACE = """
import sys, time
from isoformer.storage import open_storage
storage, mine = open_storage(sys.argv[1]), sys.argv[2].encode() * 20_000
print("ready", flush=True)
sys.stdin.readline()
print("".join("1" if storage.write_bytes(f"race/{n}", mine, if_absent=True) else "0" for n in range(100)))
"""
ENDLESS = """
import hashlib, itertools, os, sys
from isoformer.storage import open_storage
storage, first = open_storage(sys.argv[1]), sys.argv[2]
for n in itertools.count():
    body = os.urandom(300_000)
    data = hashlib.sha256(body).digest() + body
    storage.write_bytes(f"new/{first}-{n}", data, if_absent=True)
    storage.write_bytes("same", data)
    print(n, flush=True)
"""


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_of_many_processes_one_wins_each_key(tmp_path: Path) -> None:
    processes = [start(RACE, str(tmp_path), str(writer)) for writer in range(WRITERS)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    won = [process.communicate(timeout=60)[0].strip() for process in processes]
    for n in range(100):
        winners = [writer for writer in range(WRITERS) if won[writer][n] == "1"]
        assert len(winners) == 1
        assert (tmp_path / f"race/{n}").read_bytes() == str(winners[0]).encode() * 20_000
    assert len({line.count("1") for line in won} - {0, 100}) > 0, "the writers did not overlap"
    assert open_storage(tmp_path).list() == sorted(f"race/{n}" for n in range(100))


def test_a_killed_writer_leaves_no_partial_object(tmp_path: Path) -> None:
    """Killed at random moments while a reader looks; what was left behind is hidden, and counted here."""
    storage, chance, seen, abandoned = LocalStorage(tmp_path), random.Random(7), 0, 0
    for kill in range(KILLS):
        process = start(ENDLESS, str(tmp_path), str(kill))
        assert process.stdout is not None
        process.stdout.readline()
        until = time.monotonic() + chance.uniform(0, 0.15)
        while time.monotonic() < until:
            seen += require_whole(storage)
        process.kill()
        process.communicate()
        seen += require_whole(storage)
        abandoned = len(storage.abandoned())
        for key in storage.list("new/"):
            storage.delete(key)
    assert seen > 2 * KILLS
    assert abandoned > 0, "no kill hit a write"


def require_whole(storage: LocalStorage) -> int:
    """How many objects were looked at."""
    keys = storage.list()
    for key in keys:
        data = storage.read_bytes(key)
        assert len(data) == 300_032, key
        assert hashlib.sha256(data[32:]).digest() == data[:32], key
    return len(keys)


def test_a_link_whose_answer_was_lost_is_won(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over NFS a repeated request can say that the name exists, since the first one made it."""
    link = os.link

    def linked_and_lost(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError

    storage = open_storage(tmp_path)
    monkeypatch.setattr("isoformer.storage.os.link", linked_and_lost)
    assert storage.write_bytes("k", b"mine", if_absent=True)
    monkeypatch.undo()
    assert not storage.write_bytes("k", b"other", if_absent=True)
    assert storage.read_bytes("k") == b"mine"


@pytest.mark.parametrize("writer", ["python", "torch", "ray"])
def test_a_full_disk_is_recognised_whoever_met_it(writer: str) -> None:
    def write() -> None:
        with open("/dev/full", "wb") as out:
            out.write(b"x" * 100_000)

    def save() -> None:
        torch.save({"weights": torch.zeros(100_000)}, "/dev/full")

    with pytest.raises((OSError, RuntimeError)) as raised:
        save() if writer == "torch" else write()
    met: BaseException = raised.value
    if writer == "ray":
        met = RayTaskError("task", "a traceback", cast(Exception, met))
    found = full_disk(met)
    assert found is not None and "the disk is full; free some space" in str(found)
    assert full_disk(ValueError("another")) is None
