"""Looking after a root: what is listed, what verification finds, what garbage collection takes and leaves."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from embeddings.test_plan import RNA, do_work
from isoformer.embeddings.admin import collect_garbage, listing, verify
from isoformer.embeddings.pipeline import embed
from isoformer.embeddings.plan import plan
from isoformer.manifest import MANIFEST_KEY
from isoformer.storage import Storage, open_storage
from tiny_dataset import write_dataset


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    root = str(tmp_path / "root")
    write_dataset(root)
    do_work(plan(RNA, root))
    embed(RNA, root)  # all shards are there: writes the manifest, needs no Ray
    return open_storage(root)


def shards(storage: Storage) -> list[str]:
    return [key for key in storage.list("embeddings/") if key.endswith(".parquet")]


def test_listing_tells_finished_from_unfinished(storage: Storage) -> None:
    by_kind = {item.kind: item for item in listing(storage.uri)}
    assert by_kind["transcripts"].detail == "24 transcripts"
    assert by_kind["embeddings"].finished
    assert by_kind["embeddings"].detail == "24 sequences, width 84, bins:4, weights: none"
    storage.delete(next(key for key in storage.list("embeddings/") if key.endswith("manifest.json")))
    assert not {item.kind: item for item in listing(storage.uri)}["embeddings"].finished


def test_verify_hashes_everything_again(storage: Storage) -> None:
    report = verify(storage.uri)
    assert report.ok, report.problems
    assert report.objects == 3 + 1 + 3 + 1  # transcripts, reference, embeddings, their manifest


@pytest.mark.parametrize("prefix", ["transcripts/shard", "embeddings/", "reference/"])
def test_verify_names_a_damaged_object(storage: Storage, prefix: str) -> None:
    key = next(key for key in storage.list(prefix) if key.endswith((".parquet", ".gz")))
    data = bytearray(storage.read_bytes(key))
    data[len(data) // 2] ^= 0x40
    storage.write_bytes(key, bytes(data))
    report = verify(storage.uri)
    assert not report.ok
    assert any(key in problem for problem in report.problems)


def test_verify_names_a_missing_shard(storage: Storage) -> None:
    key = shards(storage)[1]
    storage.delete(key)
    assert any(key in problem for problem in verify(storage.uri).problems)


def test_nothing_is_garbage_in_a_tidy_root(storage: Storage) -> None:
    assert collect_garbage(storage.uri) == []
    storage.delete(next(key for key in storage.list("embeddings/") if key.endswith("manifest.json")))
    assert collect_garbage(storage.uri) == []  # unfinished, but the next run goes on with it


def test_shards_of_fewer_transcripts_are_garbage_once_the_dataset_is_whole_again(storage: Storage) -> None:
    old = set(shards(storage))
    for key in storage.list("transcripts/"):
        storage.delete(key)
    write_dataset(storage.uri, genes_per_shard=5)
    planned = plan(RNA, storage.uri)
    assert planned.encoders[0].reused_sequences > 0
    stale = [item for item in collect_garbage(storage.uri) if item.key.startswith("embeddings/")]
    assert {item.key for item in stale} > old  # and the manifest that lists them
    assert all("embed would use its rows" in item.reason for item in stale)
    do_work(planned)
    embed(RNA, storage.uri)
    deleted = collect_garbage(storage.uri, delete=True)
    reasons = {item.key: item.reason for item in deleted if item.key.startswith("embeddings/")}
    assert reasons == dict.fromkeys(old, "its dataset has newer shards instead")
    assert verify(storage.uri).ok
    assert plan(RNA, storage.uri).work == []


def test_garbage_is_shown_first_and_deleted_when_told(storage: Storage) -> None:
    root = Path(storage.uri)
    before = storage.list()
    for key in [MANIFEST_KEY, *(key for key in before if key.startswith("transcripts/"))]:
        storage.delete(key)
    write_dataset(storage.uri, seed=3)
    old = root / "transcripts" / ".writing-x"
    old.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    fresh = root / "transcripts" / ".writing-y"
    fresh.write_bytes(b"half")

    shown = collect_garbage(storage.uri)
    reasons = {item.reason for item in shown}
    assert len(reasons) == 3
    assert old.exists()
    assert {item.key for item in shown} >= set(shards(storage))
    assert collect_garbage(storage.uri, delete=True) == shown
    assert storage.list("embeddings/") == []
    assert not old.exists()
    assert fresh.exists()
    assert collect_garbage(storage.uri) == []
    assert verify(storage.uri).ok
