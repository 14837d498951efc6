"""Runs in which something goes wrong: the guilty sequence is found, the rest is as if nothing had been."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from embeddings.failing_workers import (
    Crashing,
    Hanging,
    Raising,
    ShortOfMemory,
    StopsOnce,
    ThrottledOnce,
    failing,
)
from embeddings.test_pipeline import encode_actors
from embeddings.test_plan import do_work, shards
from isoformer.embeddings.config import EmbedConfig, EncoderJob
from isoformer.embeddings.pipeline import embed
from isoformer.embeddings.plan import plan
from isoformer.embeddings.profile import read_profile
from isoformer.embeddings.shard_sequences import tokenise
from isoformer.embeddings.store import read_footer
from isoformer.embeddings.workers import EncodeWorker
from isoformer.errors import ClusterError
from isoformer.storage import open_storage
from tiny_dataset import write_dataset

RNA = EmbedConfig(encoders=(EncoderJob(name="composition-rna"),), threads_per_actor=1, stall_seconds=6)


@pytest.fixture
def root(tmp_path: Path) -> str:
    write_dataset(str(tmp_path / "root"), shards=4)
    return str(tmp_path / "root")


@pytest.fixture
def undisturbed(tmp_path: Path) -> str:
    made = str(tmp_path / "undisturbed")
    write_dataset(made, shards=4)
    do_work(plan(RNA, made))
    return made


def use(monkeypatch: pytest.MonkeyPatch, base: type[EncodeWorker], poison_tokens: int | None = None) -> None:
    monkeypatch.setattr("isoformer.embeddings.pool.EncodeWorker", failing(base, poison_tokens))


def poison_of(root: str) -> tuple[str, int, int]:
    """(digest, shard, tokens) of a sequence that no other is as long as."""
    planned = plan(RNA, root)
    tokens = [tokenise(planned.source, item.shard, planned.passes[0].choice) for item in planned.work]
    lengths = Counter(length for of_shard in tokens for length in of_shard.lengths().tolist())
    place, length = next(
        (place, length) for place, length in enumerate(tokens[1].lengths().tolist()) if lengths[length] == 1
    )
    return tokens[1].digests[place], planned.work[1].shard, length


def rows(root: str, path: str) -> dict[str, Any]:
    table = pq.read_table(Path(root, path))
    return dict(zip(table["digest"].to_pylist(), table["embedding"].to_pylist(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "kind", "reason"),
    [
        (Crashing, "worker_lost", "crashes_worker"),
        pytest.param(Raising, "worker_failed", "crashes_worker", marks=pytest.mark.long),
        pytest.param(Hanging, "worker_stalled", "stalls_worker", marks=pytest.mark.long),
    ],
    ids=["crashing", "raising", "hanging"],
)
def test_a_poison_sequence_is_found_and_the_rest_completes(
    ray_local: None, root: str, undisturbed: str, monkeypatch: pytest.MonkeyPatch,
    base: type[EncodeWorker], kind: str, reason: str,
) -> None:  # fmt: skip
    digest, shard, tokens = poison_of(root)
    use(monkeypatch, base, tokens)
    report = embed(RNA, root)
    assert report.quarantined == {reason: 1}
    assert report.failures == {kind: 4}  # seen; with a witness; alone, twice
    made, whole = shards(root), shards(undisturbed)
    (path,) = [path for path in whole if made[path] != whole[path]]
    assert f"shard-{shard:05d}" in path
    assert read_footer(open_storage(root), path).quarantined == {digest: reason}
    expected = rows(undisturbed, path)
    del expected[digest]
    assert rows(root, path) == expected
    assert any(f"sequence {digest} of shard {shard} is set aside: {reason}" in note for note in report.notes)


@pytest.mark.slow
def test_a_worker_that_stands_still_is_named_and_replaced(
    ray_local: None, root: str, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, StopsOnce)
    report = embed(RNA, root)
    pid = Path(f"{root}.stopped").read_text()
    assert any(f":{pid} has made no progress for" in note for note in report.notes)
    assert report.failures == {"worker_stalled": 1}
    assert shards(root) == shards(undisturbed)


@pytest.mark.slow
def test_failures_have_an_end(ray_local: None, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Crashing)
    with pytest.raises(
        ClusterError, match=r"given up after 3 failures \(worker_lost 3\).*run the same command"
    ):
        embed(RNA.edited(most_failures=2), root)
    assert not list(encode_actors())


@pytest.mark.slow
def test_storage_that_throttles_is_tried_again(
    ray_local: None, root: str, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, ThrottledOnce)
    report = embed(RNA, root)
    assert report.failures == {"storage": 4}
    assert shards(root) == shards(undisturbed)
    use(monkeypatch, EncodeWorker)
    assert embed(RNA, root).shards_written == 0


@pytest.mark.slow
def test_memory_that_ran_out_is_remembered_by_the_next_run(
    ray_local: None, root: str, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, ShortOfMemory)
    report = embed(RNA, root)
    assert shards(root) == shards(undisturbed)
    assert any("memory ran out; the token budget was halved 2 times, to 512" in note for note in report.notes)
    (cost,) = read_profile(open_storage(root)).costs.values()
    assert cost.token_budget == 512
    for path in shards(root):
        open_storage(root).delete(path)
    again = embed(RNA, root)
    assert again.notes == []
    assert shards(root) == shards(undisturbed)
