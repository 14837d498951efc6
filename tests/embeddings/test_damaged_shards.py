"""Embedding shards and manifests that were damaged or edited: one error, and no way out of the root."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoformer.embeddings.shard_file import ShardHeader
from isoformer.embeddings.store import (
    EmbeddingDataset,
    ShardWriter,
    sequences_digest,
    verify_content,
    write_manifest,
)
from isoformer.errors import FingerprintError, StorageError
from isoformer.storage import open_storage

KEY = "composition-rna.none.pooled.f16.0a1b2c3d"
STATES = {f"{n:032x}": np.full((n + 1, 4), n + 1, np.float16) for n in range(3)}


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """The one shard of a dataset."""
    storage = open_storage(tmp_path)
    writer = ShardWriter(
        storage, ShardHeader(KEY, "rna", 4, "f16", "pooled", 0, sequences_digest(list(STATES)))
    )
    for digest, values in STATES.items():
        writer.add(digest, values)
    entry = writer.publish({}, {})
    write_manifest(storage, {
        "schema_version": 1, "key": KEY, "modality": "rna", "spec": {}, "weights_digest": "none",
        "dtype": "f16", "resolution": "pooled", "width": 4, "transcripts_fingerprint": "abc",
        "shards": [entry],
    })  # fmt: skip
    return tmp_path / "embeddings" / "rna" / KEY / entry["name"]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (b'"width": 4', b'"width": 5', "width 5, not 4"),
        (b'"width": 4', b'"width": 0', "its footer says dtype 'f16' and width 0"),
        (b'"f16"', b'"f99"', "its footer says dtype 'f99'"),
        (b'"positions": 6', b'"positions": x', "its footer is not one of this version"),
        (b'"sequences": 3', b'"sequences": 4', "but its footer says 4 sequences"),
    ],
)
def test_a_footer_that_is_not_that_of_the_rows(
    shard: Path, tmp_path: Path, old: bytes, new: bytes, problem: str
) -> None:
    storage, whole = open_storage(tmp_path), shard.read_bytes()
    assert old in whole
    shard.write_bytes(whole.replace(old, new))
    with pytest.raises(StorageError, match=rf"{shard.name}: .*{problem}"):
        EmbeddingDataset.open(storage, "rna", KEY).read_shard(0)
        verify_content(storage, shard.relative_to(tmp_path).as_posix())


def test_a_shard_that_is_damaged_anywhere_is_one_error_or_the_same_values(
    shard: Path, tmp_path: Path
) -> None:
    storage, whole = open_storage(tmp_path), shard.read_bytes()
    key = shard.relative_to(tmp_path).as_posix()
    for place in range(0, len(whole), 7):
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        try:
            verify_content(storage, key)
            found = EmbeddingDataset.open(storage, "rna", KEY).read_shard(0)
        except StorageError as error:
            assert shard.name in str(error)
            continue
        assert found.keys() == STATES.keys()
        assert all((found[digest] == values).all() for digest, values in STATES.items())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"shards": 3}, "shards: "),
        ({"shards": [{}]}, r"shards\.0\.name"),
        ({"width": "x"}, "width: "),
        ({"modality": "../.."}, "modality: "),
        ({"key": "another"}, "is of the rna dataset 'another'"),
        ({"modality": "dna"}, "is of the dna dataset"),
    ],
)
def test_a_manifest_of_something_else_is_refused(
    shard: Path, tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    path = shard.with_name("manifest.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(StorageError, match=rf"manifest\.json: .*{problem}"):
        EmbeddingDataset.open(open_storage(tmp_path), "rna", KEY)


@pytest.mark.parametrize(
    "name", ["../../../x", "/etc/passwd", "shard-0.parquet", "shard-00000.0123456789ab.parquet/x"]
)
def test_a_manifest_names_shards_beside_it(shard: Path, tmp_path: Path, name: str) -> None:
    path = shard.with_name("manifest.json")
    manifest = json.loads(path.read_text())
    manifest["shards"][0]["name"] = name
    path.write_text(json.dumps(manifest))
    with pytest.raises(StorageError, match=r"manifest\.json: .* is no shard's name"):
        EmbeddingDataset.open(open_storage(tmp_path), "rna", KEY)


def test_a_manifest_of_other_sizes_than_its_shards_is_refused(shard: Path, tmp_path: Path) -> None:
    path = shard.with_name("manifest.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "width": 8, "dtype": "f32"}))
    with pytest.raises(FingerprintError, match="width 4, not 8, dtype 'f16', not 'f32'"):
        EmbeddingDataset.open(open_storage(tmp_path), "rna", KEY).read_shard(0)


@pytest.mark.parametrize("data", [b"", b"3", b"[]", b"{}", b"[" * 100_000, b"\xff"])
def test_a_manifest_that_is_none_is_refused(shard: Path, tmp_path: Path, data: bytes) -> None:
    shard.with_name("manifest.json").write_bytes(data)
    with pytest.raises(StorageError, match=r"manifest\.json: "):
        EmbeddingDataset.open(open_storage(tmp_path), "rna", KEY)


def test_a_shard_of_other_columns_is_refused(shard: Path, tmp_path: Path) -> None:
    whole = shard.read_bytes()
    for name in (b"positionz", b"p\xb5sitions"):
        shard.write_bytes(whole.replace(b"positions", name))
        with pytest.raises(StorageError, match=shard.name):
            EmbeddingDataset.open(open_storage(tmp_path), "rna", KEY).read_lengths(0)
