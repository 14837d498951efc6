"""What the benchmarks of the whole engine share: a prepared root of real proteins, its configuration, and
running a program that prints one JSON object.

The proteins are the shipped sample's. Where more are needed than it has, they are made of its own, turned
and reversed: as long, of the same residues, and each a sequence of its own to the engine.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from isoformer.benchmark.sequences import sample, spread_over_lengths
from isoformer.config import build, to_yaml
from isoformer.encoders.catalogue import PUBLISHED
from isoformer.encoders.registry import EncoderChoice
from isoformer.errors import ClusterError, ConfigError
from isoformer.manifest import read_manifest, read_shard
from isoformer.planning import PrepareConfig
from isoformer.settings import Settings
from isoformer.storage import open_storage
from isoformer.transcripts import prepare, run_here

_LONGEST_SECONDS: Final = 400.0
"""Of one program: it is ended then, and the benchmark with it."""
_SPLITS: Final = ("train", "validation", "test")


@dataclass(frozen=True)
class Row:
    """One protein of a prepared root."""

    digest: str
    protein: str
    shard: int


def require_esm2(name: str, benchmark: str) -> None:
    """ConfigError for an encoder that is no published ESM-2: the benchmarks have proteins for it to read."""
    allowed = [known for known, entry in PUBLISHED.items() if entry.module.endswith(".esm2")]
    if name not in allowed:
        raise ConfigError(
            f"benchmark {benchmark}: encoder {name!r} is not one that it can measure; "
            f"allowed: {', '.join(allowed)}"
        )


def sample_proteins(residues: int, *, least: int) -> list[str]:
    """Distinct proteins of about so many residues in all, in a fixed random order, long and short alike."""
    real = sorted(set(sample()[0]), key=lambda protein: (len(protein), protein))
    return spread_over_lengths(
        variants(real, math.ceil(residues / sum(map(len, real)))), residues, least=least
    )


def variants(proteins: Sequence[str], times: int) -> list[str]:
    """`times` as many distinct proteins: these, and then each reversed, turned, turned and reversed, …

    ConfigError where a protein is too short to be turned so often.
    """
    turns = math.ceil(times / 2)
    made = [_variant(protein, number, turns) for number in range(times) for protein in proteins]
    if len(set(made)) != len(made):
        raise ConfigError(f"benchmark: {times} times the proteins cannot all be distinct; ask for fewer")
    return made


def prepare_proteins(proteins: Sequence[str], folder: Path, *, shards: int) -> Path:
    """A prepared root under `folder` with one protein a gene, in this order, and nothing else."""
    table = folder / "proteins.parquet"
    count = len(proteins)
    pl.DataFrame(
        {
            "transcript_id": [f"T{number:06d}" for number in range(count)],
            "gene_id": [f"G{number:06d}" for number in range(count)],
            "protein": proteins,
            "split": [_SPLITS[number % len(_SPLITS)] for number in range(count)],
            "Liver": [1.0] * count,
        }
    ).write_parquet(table)
    config = {
        "route": "table",
        "table": str(table),
        "targets": ["Liver"],
        "split": {"method": "column"},
        "shards": shards,
        "label_provenance": "made up: the benchmark reads the sequences alone",
    }
    prepare(build(PrepareConfig, config), str(folder / "root"), run_shards=run_here)
    return folder / "root"


def rows_of(root: Path) -> list[Row]:
    """The proteins of a prepared root, in the order in which the table had them."""
    storage = open_storage(str(root))
    found: dict[str, Row] = {}
    for shard in range(len(read_manifest(storage).shards)):
        table = read_shard(storage, shard, ["transcript_id", "protein_digest", "protein"])
        for row in table.to_pylist():
            found[row["transcript_id"]] = Row(row["protein_digest"], row["protein"], shard)
    return [found[name] for name in sorted(found)]


def engine_config(choice: EncoderChoice, resolution: str, file: Path, **embed: Any) -> Path:
    """A configuration file for `isoformer embed` with this one encoder; the root is left to the caller."""
    encoder = {**choice.model_dump(exclude_defaults=True), "resolution": resolution}
    settings = build(Settings, {"embed": {"encoders": [encoder], **embed}})
    file.write_text(to_yaml(settings), encoding="utf-8")
    return file


def program_json(
    command: Sequence[str], log: Path, *, watch: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """The JSON object that a Python program prints last; `watch` is called with its pid while it runs.

    `command`: what follows `python -m`. ClusterError, with its last lines, where it fails or takes too long.
    """
    printed, told = log.with_suffix(".json"), log.with_suffix(".log")
    with printed.open("wb") as out, told.open("wb") as err:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=out, stderr=err)
        try:
            _wait(process, watch)
        except subprocess.TimeoutExpired:
            raise ClusterError(
                f"benchmark: {' '.join(command[:2])} did not end within {_LONGEST_SECONDS:.0f} seconds"
            ) from None
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    text = printed.read_text(encoding="utf-8")
    if process.returncode != 0:
        lines = (told.read_text(encoding="utf-8", errors="replace") or text).splitlines()
        raise ClusterError(
            f"benchmark: {' '.join(command[:2])} ended with status {process.returncode}: "
            + " | ".join(lines[-3:])
        )
    found: dict[str, Any] = json.loads(text[text.index("{") :])
    return found


Vectors = dict[str, NDArray[Any]]
"""Digest → (positions, width)."""


def largest_difference(ours: Vectors, theirs: Vectors) -> float:
    """The largest over positions of |theirs - ours| / |ours|; infinite where other sequences are there."""
    if ours.keys() != theirs.keys() or any(ours[name].shape != theirs[name].shape for name in ours):
        return math.inf
    worst = 0.0
    for name, values_LD in ours.items():
        base_LD = values_LD.astype(np.float32)
        difference_L = np.linalg.norm(theirs[name].astype(np.float32) - base_LD, axis=1)
        worst = max(worst, float((difference_L / np.linalg.norm(base_LD, axis=1)).max()))
    return worst


def _variant(protein: str, number: int, turns: int) -> str:
    turn = len(protein) * (number // 2) // turns
    turned = protein[turn:] + protein[:turn]
    return turned[::-1] if number % 2 else turned


def _wait(process: subprocess.Popen[bytes], watch: Callable[[int], None] | None) -> None:
    if watch is None:
        process.wait(timeout=_LONGEST_SECONDS)
        return
    deadline = time.monotonic() + _LONGEST_SECONDS
    while process.poll() is None:
        if time.monotonic() > deadline:
            raise subprocess.TimeoutExpired(process.args, _LONGEST_SECONDS)
        watch(process.pid)
        time.sleep(0.2)
