"""`isoformer benchmark store`: every layout gives back what it was given; the figures' arithmetic."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from isoformer.benchmark import store
from isoformer.benchmark.rounds import Benchmark
from isoformer.benchmark.store import OURS, PARTS, POOLED, Contestant, benchmark_store
from isoformer.benchmark.store_columns import COLUMNS, LARGE_BINARY
from isoformer.benchmark.store_layouts import Layout, Parquet, Rows, Values, row_groups
from isoformer.errors import StorageError

WIDTH = 6
ALL = {**store.layouts(WIDTH), **{f"{POOLED}{n}": one for n, one in store.pooled_layouts(WIDTH).items()}}


def states(lengths: tuple[int, ...] = (90, 40, 40, 7, 1), width: int = WIDTH) -> list[Values]:
    random = np.random.default_rng(0)
    return [random.normal(size=(length, width)).astype(np.float16) for length in lengths]


def rows(lengths: tuple[int, ...] = (90, 40, 40, 7, 1), width: int = WIDTH) -> Rows:
    return {f"digest-{place}": values for place, values in enumerate(states(lengths, width))}


@pytest.fixture(scope="module")
def result() -> Benchmark:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "sample_states", lambda: states(width=256))
        return benchmark_store(megabytes=1, rounds=2)


@pytest.mark.parametrize("name", ALL)
def test_a_layout_gives_back_what_it_was_given(name: str, tmp_path: Path) -> None:
    written = {digest: values[:1] for digest, values in rows().items()} if name.startswith(POOLED) else rows()
    store.require_same(name, Contestant(ALL[name], written, tmp_path / "file"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_in_many_row_groups(column: str, tmp_path: Path) -> None:
    large = rows((700, 800, 1, 900, 700), width=1024)
    layout = Parquet(COLUMNS[column], 1024, row_group_mib=1)
    store.require_same(column, Contestant(layout, large, tmp_path / "file"))
    layout.write(tmp_path / "file", large)
    assert pq.ParquetFile(tmp_path / "file").num_row_groups == 4  # 700; 800; 1 and 900; 700


@pytest.mark.parametrize("name", [name for name in ALL if "split+" in name])
def test_values_are_split_where_the_name_says_so(name: str, tmp_path: Path) -> None:
    ALL[name].write(tmp_path / "file", rows())
    group = pq.ParquetFile(tmp_path / "file").metadata.row_group(0)
    encodings = {group.column(i).path_in_schema: group.column(i).encodings for i in range(group.num_columns)}
    assert [path for path, used in encodings.items() if "BYTE_STREAM_SPLIT" in used] == [
        layout_column(ALL[name]).leaf
    ]


def layout_column(layout: Layout) -> Any:
    assert isinstance(layout, Parquet)
    return layout.column


@pytest.mark.parametrize("checksums", [True, False])
def test_a_reader_with_checksums_sees_a_flipped_bit(checksums: bool, tmp_path: Path) -> None:
    layout, path = Parquet(LARGE_BINARY, WIDTH, checksums=checksums), tmp_path / "file"
    layout.write(path, rows())
    data = bytearray(path.read_bytes())
    data[data.index(rows()["digest-0"].tobytes()) + 100] ^= 1
    path.write_bytes(data)
    if checksums:
        with pytest.raises(OSError, match="CRC"):
            dict(layout.read(path))
    else:
        assert (dict(layout.read(path))["digest-0"] != rows()["digest-0"]).sum() == 1


@dataclass(frozen=True)
class Wrong(Parquet):
    """Reads what was written; fetches something else."""

    @contextmanager
    def open(self, path: Path) -> Iterator[Any]:
        with super().open(path) as fetch:
            yield lambda digest: fetch(digest)[::-1]


@dataclass(frozen=True)
class Forgetful(Parquet):
    """Loses the first row when it reads."""

    def read(self, path: Path) -> Iterator[tuple[str, Values]]:
        yield from list(super().read(path))[1:]


@pytest.mark.parametrize("kind", [Wrong, Forgetful])
def test_a_layout_that_gives_back_something_else_is_refused(kind: type[Parquet], tmp_path: Path) -> None:
    contestant = Contestant(kind(LARGE_BINARY, WIDTH), rows(), tmp_path / "file")
    with pytest.raises(StorageError, match="benchmark store: it does not give back digest-"):
        store.require_same("it", contestant)


def test_every_figure_of_every_contestant_is_there(result: Benchmark) -> None:
    assert result.raw.keys() == {f"{name}: {part}" for name in ALL for part in PARTS}
    assert {len(seconds) for seconds in result.raw.values()} == {result.rounds} == {2}
    assert result.notes["figures"].keys() == set(ALL)
    assert all(
        seconds > 0 for name, one in result.raw.items() if not name.endswith("_cpu") for seconds in one
    )
    assert all(one["read_mb_per_second"] > 0 for one in result.notes["figures"].values())
    assert f"{OURS}: read" not in result.ratios and f"{POOLED}{OURS}: read" not in result.ratios
    assert len(result.ratios) == 4 * (len(ALL) - 2)
    json.dumps(result.to_json(), allow_nan=False)


def test_the_kept_run_is_of_these_contestants_at_full_size() -> None:
    kept = json.loads(Path(store.__file__).with_name("measured").joinpath("store.json").read_text())
    assert kept["notes"]["figures"].keys() == set(ALL)
    assert (kept["settings"]["megabytes"], kept["rounds"]) == (256, 3)
    assert all(np.isfinite(list(figures.values())).all() for figures in kept["notes"]["figures"].values())


def test_ratios_are_of_our_layout_of_the_same_kind() -> None:
    def turns(*seconds: float) -> list[store.Turn]:
        return [dict.fromkeys((*PARTS, "bytes"), one) for one in seconds]

    made_up = {OURS: turns(1, 2, 4), "b": turns(3, 2, 8), f"{POOLED}{OURS}": turns(1, 1, 1)}
    made_up[f"{POOLED}b"] = turns(5, 5, 6)
    found = store.ratios(made_up)
    assert {value for name, value in found.items() if name.startswith("b: ")} == {2}  # of 3, 1 and 2
    assert {value for name, value in found.items() if name.startswith("pooled b: ")} == {5}


def test_figures_are_medians_in_their_units() -> None:
    turn = {"write": 2.0, "read": 0.5, "write_cpu": 1.0, "read_cpu": 0.25, "fetch_cold": 0.01}
    turn |= {"fetch_open": 0.002, "bytes": 90e6}
    slow = {part: 100 * value for part, value in turn.items()}
    assert store.figures([slow, turn, turn], 100.0) == {
        "file_megabytes": 90.0, "write_mb_per_second": 50, "read_mb_per_second": 200,
        "write_cpu_ms_per_mb": 10.0, "read_cpu_ms_per_mb": 2.5, "fetch_cold_ms": 10.0, "fetch_open_ms": 2.0,
    }  # fmt: skip


def test_the_sample_is_repeated_to_the_size_asked_for() -> None:
    some = states()
    bytes_once = sum(values.nbytes for values in some)
    tiled = store.tiled(some, 3.2 * bytes_once)
    assert [len(values) for values in tiled.values()] == 3 * [90, 40, 40, 7, 1]
    assert len(store.tiled(some, 1)) == 5


def test_pooled_rows_are_means_over_64_positions() -> None:
    some = states((200,))
    made = store.pooled_rows(some, 1e9)
    assert list(made) == sorted(made) and len(made) == 200 - 64
    assert len(store.pooled_rows(some, 10 * WIDTH * 2)) == 10
    wanted = some[0][1:65].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(made[store._digest(0, 0)][0], wanted, atol=1e-3)


def test_row_groups_are_closed_once_they_are_full() -> None:
    bytes_a_position = WIDTH * 2
    groups = list(row_groups(rows(), 80 * bytes_a_position))
    assert groups == [["digest-0"], ["digest-1", "digest-2"], ["digest-3", "digest-4"]]


def test_states_are_those_of_real_lengths_longest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_SAMPLE_TOKENS", 1)
    lengths = [len(values) for values in store.sample_states()]
    assert lengths == sorted(lengths, reverse=True) and len(lengths) == 2
