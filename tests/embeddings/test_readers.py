"""A shard is plain Parquet: tools that know nothing of this package read every array as it was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from isoformer.embeddings.shard_file import ShardHeader
from isoformer.embeddings.store import ShardWriter
from isoformer.storage import open_storage

Rows = dict[str, NDArray[Any]]
WIDTHS = {"f16": 48, "f32": 6}
KINDS = {"f16": np.dtype("<f2"), "f32": np.dtype("<f4")}


def write(root: Path, rows: Rows, dtype: str, resolution: str) -> Path:
    """The shard's file, written by the store; rows in the order of encoding."""
    header = ShardHeader(
        key=f"fake.none.{resolution}.{dtype}.0", modality="protein", width=WIDTHS[dtype], dtype=dtype,
        resolution=resolution, shard=0, sequences_digest="0123456789abcdef",
    )  # fmt: skip
    writer = ShardWriter(open_storage(root), header)
    for digest, values in rows.items():
        writer.add(digest, values)
    writer.publish({"bad": "not_finite"}, {"cropped_residues": 7})
    return next(root.rglob("*.parquet"))


def per_token(dtype: str) -> Rows:
    """Longest first; more row groups than one; subnormal numbers, signed zeros and the largest."""
    random = np.random.default_rng(0)
    lengths = [(20 << 20) // (WIDTHS[dtype] * KINDS[dtype].itemsize), 7, 7, 1]
    rows = {f"{i:032x}": random.normal(size=(n, WIDTHS[dtype])) for i, n in enumerate(lengths)}
    special = [0.0, -0.0, 6e-8, -6e-8, 65504.0, -65504.0]
    rows[f"{3:032x}"][0, : len(special)] = special
    return {digest: values.astype(KINDS[dtype]) for digest, values in rows.items()}


def pooled(dtype: str) -> Rows:
    random = np.random.default_rng(1)
    return {f"{i:032x}": random.normal(size=(1, WIDTHS[dtype])).astype(KINDS[dtype]) for i in range(500)}


@pytest.fixture(scope="module", params=["f16 tokens", "f32 tokens", "f16 mean", "f32 mean"])
def shard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    dtype, resolution = request.param.split()
    rows = per_token(dtype) if resolution == "tokens" else pooled(dtype)
    return write(tmp_path_factory.mktemp("shard"), rows, dtype, resolution), rows


def shape_of(metadata: dict[bytes, bytes]) -> tuple[int, np.dtype[Any]]:
    """Width and dtype, where the file itself says them."""
    header = json.loads(metadata[b"isoformer"])["header"]
    return header["width"], KINDS[header["dtype"]]


def require_same(read: Rows, written: Rows) -> None:
    assert list(read) == list(written)
    for digest, values in written.items():
        assert (read[digest].shape, read[digest].dtype) == (values.shape, values.dtype)
        assert read[digest].tobytes() == values.tobytes()


def test_pyarrow(shard: tuple[Path, Rows]) -> None:
    table = pq.read_table(shard[0])
    assert pq.ParquetFile(shard[0]).num_row_groups == (1 if len(table) > 4 else 2)
    width, dtype = shape_of(pq.read_metadata(shard[0]).metadata)
    columns = (table[name].to_pylist() for name in ("digest", "positions", "embedding"))
    read = {d: np.frombuffer(raw, dtype).reshape(n, width) for d, n, raw in zip(*columns, strict=True)}
    require_same(read, shard[1])


def test_pandas(shard: tuple[Path, Rows]) -> None:
    frame = pd.read_parquet(shard[0])
    width, dtype = shape_of(pq.read_metadata(shard[0]).metadata)
    columns = (frame["digest"], frame["positions"], frame["embedding"])
    read = {d: np.frombuffer(raw, dtype).reshape(n, width) for d, n, raw in zip(*columns, strict=True)}
    require_same(read, shard[1])


def test_polars(shard: tuple[Path, Rows]) -> None:
    frame = pl.read_parquet(shard[0], use_pyarrow=False)
    assert frame.schema == {"digest": pl.String, "positions": pl.Int32, "embedding": pl.Binary}
    stored = pl.read_parquet_metadata(shard[0])["isoformer"]
    width, dtype = shape_of({b"isoformer": stored.encode()})
    rows = frame.select("digest", "positions", "embedding").iter_rows()
    require_same({d: np.frombuffer(raw, dtype).reshape(n, width) for d, n, raw in rows}, shard[1])


def test_duckdb(shard: tuple[Path, Rows]) -> None:
    with duckdb.connect() as database:
        file = database.from_parquet(str(shard[0]))
        rows = file.project("digest, positions, embedding").fetchall()
        stored = database.execute(
            "SELECT value FROM parquet_kv_metadata(?) WHERE decode(key) = 'isoformer'", [str(shard[0])]
        ).fetchall()
    width, dtype = shape_of({b"isoformer": stored[0][0]})
    require_same({d: np.frombuffer(raw, dtype).reshape(n, width) for d, n, raw in rows}, shard[1])


def test_one_sequence_is_found_without_reading_the_others(shard: tuple[Path, Rows]) -> None:
    digest, values = list(shard[1].items())[-1]
    with duckdb.connect() as database:
        query = "SELECT positions, embedding FROM read_parquet(?) WHERE digest = ?"
        ((positions, raw),) = database.execute(query, [str(shard[0]), digest]).fetchall()
    np.testing.assert_array_equal(np.frombuffer(raw, values.dtype).reshape(positions, -1), values)
    lazy = pl.scan_parquet(shard[0]).filter(pl.col("digest") == digest).collect()
    assert lazy["embedding"].to_list() == [values.tobytes()]
