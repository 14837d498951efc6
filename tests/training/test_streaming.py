"""Embeddings that stay in the store: the same batches, the same fit, bounded memory, exact resume."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from isoformer.errors import ConfigError
from isoformer.evaluate import evaluate
from isoformer.model import ModelConfig
from isoformer.storage import open_storage
from isoformer.training.batches import BatchFeed
from isoformer.training.config import TrainConfig
from isoformer.training.data import PinnedDataset, load_dataset
from isoformer.training.loop import fit, predict
from isoformer.training.runs import RunFolder, run_settings
from isoformer.training.statistics import train_statistics
from isoformer.training.streaming import StreamFeed, new_feed
from isoformer.training.workers import fit_in_folder
from made_dataset import write_embeddings
from tiny_dataset import write_dataset

KEYS = {"dna": "dna.made", "rna": "rna.made", "protein": "protein.made"}
CONFIG = TrainConfig(keys=KEYS, model=ModelConfig(width=8, heads=2), epochs=3, batch_size=5)
CPU = torch.device("cpu")


def written(root: str, *, shards: int) -> str:
    write_dataset(root, shards=shards, genes_per_shard=12 // shards, poison_protein=True, window_bases=512)
    for modality, key in KEYS.items():
        write_embeddings(root, modality, key=key, width=8)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(str(tmp_path_factory.mktemp("streamed")), shards=4)


def both(root: str) -> tuple[PinnedDataset, PinnedDataset]:
    return load_dataset(root, KEYS, mode="pinned"), load_dataset(root, KEYS, mode="streamed")


def feed_of(data: PinnedDataset, shards: int = 2) -> StreamFeed:
    feed = new_feed(data, data.modalities, CPU, shards)
    assert isinstance(feed, StreamFeed)
    return feed


def test_a_streamed_batch_is_the_pinned_one(root: str) -> None:
    pinned, streamed = both(root)
    assert streamed.is_streamed and not pinned.is_streamed
    assert streamed.fingerprint == pinned.fingerprint
    assert streamed.quarantined == pinned.quarantined and pinned.quarantined["protein"]
    rows = np.random.default_rng(0).permutation(len(pinned))
    theirs, ours = BatchFeed(pinned, pinned.modalities, CPU), feed_of(streamed)
    expected = theirs.batch(rows)
    order = [rows[:7], rows[7:8], rows[8:]]
    for some, batch in zip(order, ours.batches(order), strict=True):
        single = theirs.batch(some)
        for modality in pinned.modalities:
            one, other = batch.tokens[modality], single.tokens[modality]
            assert torch.equal(one.hidden_BLD, other.hidden_BLD)  # type: ignore[union-attr]
            assert torch.equal(one.is_token_BL, other.is_token_BL)  # type: ignore[union-attr]
        assert torch.equal(batch.targets_BK, single.targets_BK)
    assert torch.equal(ours.batch(rows).targets_BK, expected.targets_BK)
    for modality in pinned.modalities:
        np.testing.assert_allclose(
            streamed.states[modality].means(), pinned.states[modality].means(), atol=1e-6
        )


def test_train_statistics_are_the_same(root: str) -> None:
    pinned, streamed = both(root)
    (targets, inputs), (others, streams) = (train_statistics(d, CONFIG.model) for d in (pinned, streamed))
    np.testing.assert_array_equal(targets.mean, others.mean)
    for modality, statistics in inputs.items():
        np.testing.assert_allclose(streams[modality].mean, statistics.mean, atol=1e-6)
        np.testing.assert_allclose(streams[modality].sd, statistics.sd, rtol=1e-5)


def test_with_one_shard_the_fit_is_the_pinned_one(tmp_path: Path) -> None:
    pinned, streamed = both(written(str(tmp_path), shards=1))
    one, other = fit(CONFIG, pinned), fit(CONFIG, streamed)
    for theirs, ours in zip(one.history, other.history, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
        assert ours["val_r2"] == pytest.approx(theirs["val_r2"], rel=1e-4, abs=1e-5)
    rows = pinned.rows("test")
    np.testing.assert_allclose(
        predict(other.model, streamed, rows), predict(one.model, pinned, rows), rtol=1e-4, atol=1e-4
    )


def test_an_epoch_has_every_row_once_in_groups_of_shards(root: str) -> None:
    _, streamed = both(root)
    rows, shard = streamed.rows("train"), feed_of(streamed).shard_of_N
    orders = [feed_of(streamed).order(rows, 4, seed=1, epoch=epoch) for epoch in (0, 0, 1)]
    assert [batch.tolist() for batch in orders[0]] == [batch.tolist() for batch in orders[1]]
    assert [batch.tolist() for batch in orders[0]] != [batch.tolist() for batch in orders[2]]
    for order in orders:
        assert sorted(np.concatenate(order)) == sorted(rows)
        groups = list(dict.fromkeys(tuple(sorted(set(shard[batch]))) for batch in order))
        assert max(map(len, groups)) <= 2
        assert len({s for group in groups for s in group}) == 4


def test_each_shard_is_read_once_an_epoch(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from isoformer.embeddings.store import EmbeddingDataset

    _, streamed = both(root)
    reads: list[tuple[str, int]] = []
    read = EmbeddingDataset.read_shard

    def counted(self: EmbeddingDataset, index: int) -> Any:
        reads.append((self.manifest["modality"], index))
        return read(self, index)

    monkeypatch.setattr(EmbeddingDataset, "read_shard", counted)
    feed = feed_of(streamed)
    for _ in feed.batches(feed.order(streamed.rows("train"), 3, seed=0, epoch=0)):
        pass
    assert sorted(reads) == sorted((modality, shard) for modality in KEYS for shard in range(4))


def test_workers_read_their_own_shards_and_share_every_row(root: str) -> None:
    _, streamed = both(root)
    feed = feed_of(streamed)
    for batch in feed.order(streamed.rows("train"), 6, seed=0, epoch=0):
        shares = [feed.share(batch, rank, 2) for rank in range(2)]
        assert sorted(np.concatenate(shares)) == sorted(batch)
        assert not set(feed.shard_of_N[shares[0]]) & set(feed.shard_of_N[shares[1]])
    with pytest.raises(ConfigError, match="as many shards at a time as workers"):
        feed.share(streamed.rows("train"), 0, 3)


def test_resume_within_an_epoch_is_exact(root: str, tmp_path: Path) -> None:
    _, streamed = both(root)
    config = CONFIG.edited(checkpoint_steps=2)
    undisturbed = fit(config, streamed)

    def stopped(metrics: dict[str, float], write: Any) -> None:
        if (metrics["epoch"], metrics.get("step")) == (1, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(config, streamed, report=stopped, checkpoint_dir=tmp_path / "c")
    resumed = fit(config, streamed, resume_from=tmp_path / "c")
    assert [e["train_loss"] for e in resumed.history] == [e["train_loss"] for e in undisturbed.history]
    for name, tensor in undisturbed.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name])


def test_a_streamed_run_is_evaluated(root: str) -> None:
    _, streamed = both(root)
    config = CONFIG.edited(data="streamed")
    folder = RunFolder(open_storage(root), "streamed")
    folder.claim(run_settings(config, streamed, "streamed"), resume=False)
    fit_in_folder(config, streamed, folder, outbox=lambda message: None)
    assert evaluate(root, "streamed", draws=10).run == "streamed"
    pinned = evaluate(root, "streamed", draws=10, data=load_dataset(root, KEYS, mode="pinned"))
    streamed_again = evaluate(root, "streamed", draws=10, data=streamed)
    assert pinned.table.rows[0].r2.value == pytest.approx(streamed_again.table.rows[0].r2.value, rel=1e-4)


def test_what_does_not_fit_is_streamed(root: str) -> None:
    assert load_dataset(root, KEYS, memory_limit_bytes=100).is_streamed
    assert not load_dataset(root, KEYS).is_streamed


MEMORY = """
import resource, sys, threading, time
import numpy as np, psutil, torch
sys.path[:0] = {path!r}
from isoformer.training.data import load_dataset
from isoformer.training.streaming import new_feed
torch.set_num_threads(1)
data = load_dataset({root!r}, {{"rna": "rna.large"}}, mode={mode!r})
feed = new_feed(data, ("rna",), torch.device("cpu"), 1)
process, most, over = psutil.Process(), [0], [False]
def watch():
    while not over[0]:
        info = process.memory_full_info()
        most[0] = max(most[0], info.uss)
        time.sleep(0.02)
start = process.memory_full_info().uss
thread = threading.Thread(target=watch); thread.start()
rows = 0
for batch in feed.batches(feed.order(np.arange(len(data)), 16, seed=0, epoch=0)):
    rows += len(batch.rows)
    time.sleep(0.002)
over[0] = True; thread.join()
assert rows == len(data)
print(most[0] - start)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    """Shards of 17 MB, 4 and 16 of them (268 MB): a pass over either adds no more than the feed may hold, two
    shards, the pages of a third that is being read, and five batches (one in the making, one in the reader's
    hands).
    """
    from isoformer.embeddings.shard_file import ShardHeader
    from isoformer.embeddings.store import ShardWriter, sequences_digest, write_manifest
    from isoformer.manifest import read_manifest, read_shard

    added = {}
    for shards in (4, 16):
        root = str(tmp_path / str(shards))
        write_dataset(root, shards=shards, genes_per_shard=32, window_bases=64)
        storage, entries = open_storage(root), []
        manifest = read_manifest(storage)
        for index in range(shards):
            digests = sorted(set(read_shard(storage, index)["rna_digest"].to_pylist()))
            header = ShardHeader("rna.large", "rna", 512, "f16", "tokens", index, sequences_digest(digests))
            writer = ShardWriter(storage, header)
            for digest in digests:
                writer.add(digest, np.ones((256, 512), dtype=np.float16))
            entries.append(writer.publish({}, {}))
        described: Any = {
            "schema_version": 1, "key": "rna.large", "modality": "rna", "weights_digest": "none",
            "dtype": "f16", "resolution": "tokens", "width": 512,
            "transcripts_fingerprint": manifest.fingerprint, "shards": entries,
            "spec": {"name": "made", "trained": "random"},
        }  # fmt: skip
        write_manifest(storage, described)
        code = MEMORY.format(path=[], root=root, mode="streamed")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        added[shards] = int(done.stdout)
    shard_bytes, batch_bytes = 64 * 256 * 512 * 2, 16 * 256 * 512 * 4
    held_bytes = 3 * shard_bytes + 5 * batch_bytes
    assert held_bytes < 16 * shard_bytes / 2
    assert max(added.values()) < held_bytes, added
