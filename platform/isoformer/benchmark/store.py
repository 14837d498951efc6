"""`isoformer benchmark store`: ways to keep per-token arrays in a file, and one vector a sequence.

Hidden states of ESM-2 8M (random weights) on the shipped sample's proteins and RNA lengths, rounded to
float16 as the store does, longest first, laid down in copies that lie apart until they make the megabytes
asked for. Every contestant in turn writes its file, reads all of it into numpy arrays, and fetches sequences
by their digest. A name says layout, compression and row group: `list split+zstd-1 16MiB` has Parquet's
BYTE_STREAM_SPLIT under zstd.

The file is read back from the page cache and written without being flushed to disk: the figures are of
formats, not of a disk. A ratio is a contestant's seconds over those of `OURS` (`pooled OURS`), or its bytes
over theirs; for writing and reading it is of the CPU's seconds, which on a quiet machine are the clock's and
on a busy one still mean something.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import torch

from isoformer.benchmark.rounds import Benchmark, in_turns, machine, median_ratio, versions
from isoformer.benchmark.sequences import protein_and_rna_tokens, spread_over_lengths
from isoformer.benchmark.store_columns import COLUMNS, LARGE_BINARY, Values
from isoformer.benchmark.store_layouts import (
    ArrowFile,
    BytesObjects,
    Layout,
    NumpyZip,
    Parquet,
    Rows,
    SafeTensors,
)
from isoformer.embeddings.key import to_dtype
from isoformer.encoders.registry import EncoderChoice, get_spec, load_encoder
from isoformer.encoders.spec import pack
from isoformer.errors import StorageError

OURS: Final = "large_binary none 16MiB"
POOLED: Final = "pooled "
PARTS: Final = ("write", "read", "write_cpu", "read_cpu", "fetch_cold", "fetch_open")
"""Writing, reading all, the CPU's share of both; fetching one with and without opening the file for it."""
_RATIOS: Final = ("bytes", "write_cpu", "read_cpu", "fetch_open")
Turn = dict[str, float]
"""Seconds of each of `PARTS`, and the file's bytes."""
_ENCODER: Final = EncoderChoice(name="esm2-8m", random_seed=0)
_SAMPLE_TOKENS: Final = 40_000
_POOLED_POSITIONS: Final = 64
_POOLED_SHARE: Final = 8
_COLD_FETCHES: Final = 3
_OPEN_FETCHES: Final = 16
_CHECKED_SEQUENCES: Final = 24


@dataclass(frozen=True)
class Contestant:
    """A layout, what it is given to keep, and where."""

    layout: Layout
    rows: Rows
    path: Path

    @property
    def megabytes(self) -> float:
        return sum(values_LD.nbytes for values_LD in self.rows.values()) / 1e6

    def take_turn(self) -> Turn:
        """One round. The file is removed, so that no disk has to take in what all contestants write."""
        write, write_cpu = _seconds(lambda: self.layout.write(self.path, self.rows))
        read, read_cpu = _seconds(lambda: dict(self.layout.read(self.path)))
        random = np.random.default_rng(0)
        digests = [str(digest) for digest in random.choice(list(self.rows), _COLD_FETCHES + _OPEN_FETCHES)]
        cold = [_seconds(partial(self._open_and_fetch, digest))[0] for digest in digests[:_COLD_FETCHES]]
        with self.layout.open(self.path) as fetch:
            opened = [_seconds(partial(fetch, digest))[0] for digest in digests[_COLD_FETCHES:]]
        size = self.path.stat().st_size
        self.path.unlink()
        seconds = (write, read, write_cpu, read_cpu, median(cold), median(opened))
        return {**dict(zip(PARTS, seconds, strict=True)), "bytes": size}

    def _open_and_fetch(self, digest: str) -> Values:
        with self.layout.open(self.path) as fetch:
            return fetch(digest)


def benchmark_store(megabytes: int = 256, rounds: int = 3) -> Benchmark:
    """Time every layout on `megabytes` of per-token arrays and an eighth of that of pooled ones.

    StorageError where a layout does not give back what was written.
    """
    states = sample_states()
    rows, pooled = tiled(states, megabytes * 1e6), pooled_rows(states, megabytes * 1e6 / _POOLED_SHARE)
    width = states[0].shape[1]
    with tempfile.TemporaryDirectory(prefix="isoformer-benchmark-") as folder:
        path = Path(folder, "shard")
        contestants = {name: Contestant(layout, rows, path) for name, layout in layouts(width).items()}
        contestants |= {
            f"{POOLED}{name}": Contestant(layout, pooled, path)
            for name, layout in pooled_layouts(width).items()
        }
        for name, contestant in contestants.items():
            require_same(name, contestant)
        contestants[OURS].take_turn()  # takes the memory that everyone will use
        turns = in_turns({name: one.take_turn for name, one in contestants.items()}, rounds)
    return Benchmark(
        "store",
        settings={"megabytes": megabytes, "threads": 1},
        rounds=len(turns[OURS]),
        raw={f"{name}: {part}": [turn[part] for turn in turns[name]] for name in turns for part in PARTS},
        ratios=ratios(turns),
        notes={
            "values": f"{_ENCODER.name}, random weights, float16 of width {width}; repeated after "
            f"{sum(map(len, states))} positions",
            "file": "page cache, not flushed; one process, reading and writing on one thread",
            "sequences": len(rows),
            "positions": sum(map(len, rows.values())),
            "pooled_sequences": len(pooled),
            "figures": {name: figures(turns[name], one.megabytes) for name, one in contestants.items()},
        },
        hardware=machine("cpu", 1),
        versions=versions("pyarrow", "numpy", "safetensors"),
    )


def layouts(width: int) -> dict[str, Layout]:
    """Those for per-token arrays, ours first."""
    ours = Parquet(LARGE_BINARY, width)
    split = Parquet(COLUMNS["list"], width, byte_stream_split=True)
    split_rows = Parquet(COLUMNS["position_fixed_binary"], width, byte_stream_split=True)
    return {
        OURS: ours,
        "large_binary objects none 16MiB": BytesObjects(LARGE_BINARY, width),
        "large_binary none 16MiB without checksums": replace(ours, checksums=False),
        **{f"{name} none 16MiB": Parquet(COLUMNS[name], width) for name in COLUMNS if name in _UNCOMPRESSED},
        **{f"large_binary none {size}MiB": replace(ours, row_group_mib=size) for size in (1, 4, 64, 128)},
        **_compressed("large_binary", ours, ("lz4", "zstd-1", "zstd-3")),
        **_compressed("split_large_binary", Parquet(COLUMNS["split_large_binary"], width), ("lz4", "zstd-1")),
        **_compressed("list split+", split, ("lz4", "zstd-1", "zstd-3")),
        **_compressed("position_fixed_binary split+", split_rows, ("zstd-1",)),
        "arrow file none 16MiB": ArrowFile(width),
        "npz none": NumpyZip(),
        "safetensors none": SafeTensors(),
    }


_UNCOMPRESSED: Final = frozenset(COLUMNS) - {"large_binary", "split_large_binary"}


def pooled_layouts(width: int) -> dict[str, Layout]:
    """Those for one vector a sequence, ours first."""
    ours = Parquet(LARGE_BINARY, width)
    fixed = Parquet(COLUMNS["position_fixed_list"], width)
    return {
        OURS: ours,
        "large_binary objects none 16MiB": BytesObjects(LARGE_BINARY, width),
        "large_binary none 1MiB": replace(ours, row_group_mib=1),
        "list none 16MiB": Parquet(COLUMNS["list"], width),
        "position_fixed_list none 16MiB": fixed,
        **_compressed("position_fixed_list split+", replace(fixed, byte_stream_split=True), ("zstd-1",)),
        "position_fixed_binary none 16MiB": Parquet(COLUMNS["position_fixed_binary"], width),
        **_compressed("large_binary", ours, ("zstd-1",)),
        **_compressed("split_large_binary", Parquet(COLUMNS["split_large_binary"], width), ("zstd-1",)),
        "safetensors none": SafeTensors(),
    }


def sample_states() -> list[Values]:
    """(positions, width) states of some tens of thousands of positions, longest first."""
    encoder = load_encoder(_ENCODER, "cpu")
    tokens = protein_and_rna_tokens(_ENCODER, get_spec(_ENCODER))
    sample = sorted(spread_over_lengths(tokens, _SAMPLE_TOKENS, least=2), key=len, reverse=True)
    with torch.inference_mode():
        return [to_dtype(encoder.encode(pack([one])).hidden_PD.numpy(), "f16") for one in sample]


def tiled(states: Sequence[Values], wanted_bytes: float) -> Rows:
    """Digest → array: the whole sample, again and again, until it makes so many bytes."""
    copies = max(1, round(wanted_bytes / sum(values_LD.nbytes for values_LD in states)))
    return {
        _digest(copy, place): values_LD for copy in range(copies) for place, values_LD in enumerate(states)
    }


def pooled_rows(states: Sequence[Values], wanted_bytes: float) -> Rows:
    """Digest → (1, width): running means, in the order of their digests, which parts neighbours."""
    values_PD = np.concatenate(states).astype(np.float32)
    sums_PD = np.cumsum(values_PD, axis=0, dtype=np.float64)
    means_PD = to_dtype(
        ((sums_PD[_POOLED_POSITIONS:] - sums_PD[:-_POOLED_POSITIONS]) / _POOLED_POSITIONS).astype(np.float32),
        "f16",
    )
    count = max(1, min(len(means_PD), int(wanted_bytes / means_PD[0].nbytes)))
    return dict(sorted((_digest(0, place), means_PD[place : place + 1]) for place in range(count)))


def require_same(name: str, contestant: Contestant) -> None:
    """StorageError where a few sequences do not come back, read or fetched, as they were written."""
    few = dict(list(contestant.rows.items())[-_CHECKED_SEQUENCES:])
    contestant.layout.write(contestant.path, few)
    read = dict(contestant.layout.read(contestant.path))
    with contestant.layout.open(contestant.path) as fetch:
        for digest, values_LD in few.items():
            for found in (read.get(digest), fetch(digest)):
                if found is None or not np.array_equal(found, values_LD) or len(read) != len(few):
                    raise StorageError(
                        f"benchmark store: {name} does not give back {digest} as it was written"
                    )
    contestant.path.unlink()


def figures(turns: Sequence[Turn], megabytes: float) -> dict[str, float]:
    """Medians over the rounds."""
    typical = {part: median(turn[part] for turn in turns) for part in turns[0]}
    return {
        "file_megabytes": round(typical["bytes"] / 1e6, 1),
        "write_mb_per_second": round(megabytes / typical["write"]),
        "read_mb_per_second": round(megabytes / typical["read"]),
        "write_cpu_ms_per_mb": round(typical["write_cpu"] * 1e3 / megabytes, 2),
        "read_cpu_ms_per_mb": round(typical["read_cpu"] * 1e3 / megabytes, 2),
        "fetch_cold_ms": round(typical["fetch_cold"] * 1e3, 2),
        "fetch_open_ms": round(typical["fetch_open"] * 1e3, 3),
    }


def ratios(turns: Mapping[str, Sequence[Turn]]) -> dict[str, float]:
    """Every other contestant over ours of its kind."""
    found = {}
    for name in turns:
        ours = f"{POOLED}{OURS}" if name.startswith(POOLED) else OURS
        for part in _RATIOS if name != ours else ():
            pairs = [[turn[part] for turn in turns[which]] for which in (name, ours)]
            found[f"{name}: {part}"] = round(median_ratio(*pairs), 3)
    return found


def _compressed(name: str, layout: Parquet, codecs: Iterable[str]) -> dict[str, Layout]:
    made: dict[str, Layout] = {}
    for codec in codecs:
        compression, _, level = codec.partition("-")
        label = f"{name}{codec}" if name.endswith("+") else f"{name} {codec}"
        made[f"{label} 16MiB"] = replace(layout, compression=compression, level=int(level) if level else None)
    return made


def _digest(*parts: int) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _seconds(function: Callable[[], object]) -> tuple[float, float]:
    """By the clock, and of this process on any core."""
    started, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - started, time.process_time() - cpu
