"""Embedding shards: the same bytes every time, verified, never overwritten, honest about what they are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from isoformer.embeddings.shard_file import ShardHeader
from isoformer.embeddings.store import (
    EmbeddingDataset,
    EmbeddingsManifest,
    ShardEntry,
    ShardWriter,
    digests_of,
    read_footer,
    rows_by_digest,
    sequences_digest,
    shard_key,
    verify_content,
    write_manifest,
)
from isoformer.errors import FingerprintError, StorageError
from isoformer.storage import Storage, open_storage

HEADER = ShardHeader(
    key="fake.none.tokens.f16.00000000", modality="protein", width=4, dtype="f16", resolution="tokens",
    shard=0, sequences_digest="0123456789abcdef",
)  # fmt: skip
PATH = f"embeddings/protein/{HEADER.key}/shard-00000.0123456789ab.parquet"


def write_shard(
    storage: Storage,
    header: ShardHeader,
    rows: dict[str, NDArray[Any]],
    quarantined: dict[str, str] | None = None,
    counts: dict[str, int] | None = None,
) -> ShardEntry:
    writer = ShardWriter(storage, header)
    try:
        for digest, values_LD in rows.items():
            writer.add(digest, values_LD)
        return writer.publish(quarantined or {}, counts or {})
    finally:
        writer.close()


def rows(count: int = 5, seed: int = 0) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(seed)
    return {f"{i:032x}": random.normal(size=(i + 1, 4)).astype(np.float16) for i in range(count)}


def header_of(digests: list[str]) -> ShardHeader:
    return dataclasses.replace(HEADER, sequences_digest=sequences_digest(digests))


def manifest(entry: Any) -> EmbeddingsManifest:
    return {
        "schema_version": 1, "key": HEADER.key, "modality": "protein", "spec": {}, "weights_digest": "none",
        "resolution": "tokens", "dtype": "f16", "width": 4, "transcripts_fingerprint": "f", "shards": [entry],
    }  # fmt: skip


class StoreContract:
    def test_rows_come_back(self, storage: Storage) -> None:
        entry = write_shard(storage, HEADER, rows(), {"bad": "not_finite"}, {"cropped_residues": 7})
        assert entry["quarantined"] == {"not_finite": 1}
        assert entry["counts"] == {"cropped_residues": 7}
        with pytest.raises(StorageError, match="no finished protein dataset"):
            EmbeddingDataset.open(storage, "protein", HEADER.key)
        write_manifest(storage, manifest(entry))
        read = EmbeddingDataset.open(storage, "protein", HEADER.key).read_shard(0)
        assert read.keys() == rows().keys()
        for digest, values in rows().items():
            np.testing.assert_array_equal(read[digest], values)

    def test_a_second_writer_keeps_the_first(self, storage: Storage) -> None:
        first = write_shard(storage, HEADER, rows())
        assert write_shard(storage, HEADER, rows(seed=1)) == first

    def test_another_source_is_named_on_both_sides(self, storage: Storage) -> None:
        write_shard(storage, HEADER, rows())
        other = dataclasses.replace(HEADER, sequences_digest=f"{HEADER.sequences_digest[:12]}0000")
        with pytest.raises(
            FingerprintError, match=r"'0123456789abcdef' \(wanted '0123456789ab0000'\).*nothing"
        ):
            write_shard(storage, other, rows())

    def test_rows_are_found_by_digest(self, storage: Storage) -> None:
        write_shard(storage, HEADER, rows(20))
        assert digests_of(storage, PATH, HEADER) == list(rows(20))
        some = {f"{7:032x}", f"{19:032x}", "f" * 32}
        found = rows_by_digest(storage, PATH, HEADER, some)
        assert found.keys() == some - {"f" * 32}
        np.testing.assert_array_equal(found[f"{7:032x}"], rows(20)[f"{7:032x}"])
        with pytest.raises(FingerprintError, match=r"resolution 'tokens' \(wanted 'pooled'\)"):
            rows_by_digest(storage, PATH, dataclasses.replace(HEADER, resolution="pooled"), some)

    def test_another_s_sequences_are_found_out(self, storage: Storage) -> None:
        write_shard(storage, HEADER, rows())
        with pytest.raises(
            StorageError, match=r"holds sequences of digest \w+, but its footer says 0123456789"
        ):
            verify_content(storage, PATH)

    def test_an_empty_shard_is_a_shard(self, storage: Storage) -> None:
        header = header_of(["bad"])
        assert write_shard(storage, header, {}, {"bad": "no_valid_letter"})["sequences"] == 0
        assert verify_content(storage, shard_key(header)).quarantined == {"bad": "no_valid_letter"}


class TestLocalStore(StoreContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return open_storage(tmp_path / "root")


class TestS3Store(StoreContract):
    @pytest.fixture
    def storage(self, s3_root: str) -> Storage:
        return open_storage(s3_root)


def test_same_rows_same_bytes(tmp_path: Path) -> None:
    a, b = open_storage(tmp_path / "a"), open_storage(tmp_path / "b")
    write_shard(a, HEADER, rows())
    write_shard(b, HEADER, rows())
    assert a.read_bytes(PATH) == b.read_bytes(PATH)


def test_an_unfinished_shard_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    writer = ShardWriter(open_storage(tmp_path / "root"), HEADER)
    writer.add("d", np.ones((1, 4), np.float16))
    assert list((tmp_path / "scratch").iterdir())
    writer.close()
    assert not list((tmp_path / "scratch").iterdir())
    assert not (tmp_path / "root").exists()


def test_many_row_groups(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    large = {f"{i:032x}": np.full((3000, 1024), i, np.float16) for i in range(6)}
    header = dataclasses.replace(header_of(list(large)), width=1024)
    write_shard(storage, header, large)
    assert pq.ParquetFile(tmp_path / shard_key(header)).num_row_groups == 2
    assert verify_content(storage, shard_key(header)).positions == 18_000


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_never_published(tmp_path: Path, value: float) -> None:
    storage = open_storage(tmp_path)
    poisoned = rows()
    poisoned["0" * 32] = np.full((1, 4), value, np.float16)
    with pytest.raises(StorageError, match=r"0{32} holds a value that is not finite"):
        write_shard(storage, HEADER, poisoned)
    assert storage.list() == []


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"got \(2, 3\) of float16; allowed: \(positions, 4\) of float16"):
        write_shard(open_storage(tmp_path), HEADER, {"d": np.zeros((2, 3), np.float16)})


def test_damage_is_found(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    header = header_of(list(rows(50)))
    path = shard_key(header)
    write_shard(storage, header, rows(50))
    assert verify_content(storage, path).sequences == 50
    whole = storage.read_bytes(path)
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    for damaged in (bytes(flipped), whole[: len(whole) // 2], b""):
        storage.write_bytes(path, damaged)
        with pytest.raises(StorageError, match=r"shard-00000\.\w+\.parquet"):
            verify_content(storage, path)


def test_foreign_parquet_is_refused(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(StorageError, match="says nothing of embeddings"):
        read_footer(storage, "x.parquet")
