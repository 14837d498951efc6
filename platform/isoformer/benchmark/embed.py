"""`isoformer benchmark embed`: the whole engine, from cold, against a bare loop, a script and Ray Data.

Real proteins of the shipped sample, prepared once; the same weights (random, of a published ESM-2 size),
threads and tokens for all; every contestant a process of its own, in turns, every round.

    engine   `isoformer embed --json` on a root that knows nothing: Ray is started, everything stored; on a
             CPU an actor a core, which wait for nothing where the threads of one wait for each other
    loop, script, ray_data   see `embed_contestants.py`

A rate counts real tokens, from the first batch to the end, the first batch's warming up included and what is
before it reported beside. What the last round made is compared before anything is reported.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch

from isoformer.benchmark.embed_contestants import RAY_DATA_ROWS, SCRIPT_BATCH, Job, read_output
from isoformer.benchmark.engine_inputs import (
    Vectors,
    engine_config,
    largest_difference,
    prepare_proteins,
    program_json,
    require_esm2,
    rows_of,
    sample_proteins,
)
from isoformer.benchmark.rounds import Benchmark, in_turns, machine, median_ratio, versions
from isoformer.embeddings.config import CPU_BUDGET_TOKENS, GPU_BUDGET_TOKENS
from isoformer.embeddings.store import EmbeddingDataset
from isoformer.encoders.registry import EncoderChoice, Precision, get_spec
from isoformer.errors import ConfigError, EncoderError
from isoformer.storage import open_storage

CONTESTANTS: Final = (
    ("loop", "pooled"),
    ("engine", "pooled"),
    ("script", "pooled"),
    ("ray_data", "pooled"),
    ("loop", "tokens"),
    ("engine", "tokens"),
)
RATIOS: Final[Mapping[str, tuple[str, str]]] = {
    "engine_over_loop_pooled": ("loop_pooled", "engine_pooled"),
    "engine_over_loop_tokens": ("loop_tokens", "engine_tokens"),
    "engine_over_script": ("script_pooled", "engine_pooled"),
    "engine_over_ray_data": ("ray_data_pooled", "engine_pooled"),
}
"""Rates' ratio → whose seconds over whose: the tokens are the same."""
_SEED: Final = 0
_SHARDS: Final = 8
_LEAST_PROTEINS: Final = 3 * _SHARDS
_STEADY_SECONDS: Final = 24.0
_ASSUMED_FLOPS_PER_SECOND: Final = {"cpu": 90e9, "cuda": 30e12}
"""Of one core, of one GPU: only to choose how many proteins there are."""
_MOST_OUTPUT_BYTES: Final = 2 << 30
_MOST_SECONDS: Final = 900.0
"""Of all rounds: little is done before them."""
_AGREEMENT: Final = {"f32": 2e-3, "bf16": 0.1, "f16": 0.02}
"""Largest difference that is taken for the same model, relative to a vector's norm; all are stored in f16."""


@dataclass(frozen=True)
class Outcome:
    """One contestant's run. `seconds`: from its first batch to its end; `before`: what was before it."""

    seconds: float
    before: dict[str, float]


def benchmark_embed(
    encoder: str = "esm2-35m",
    *,
    precision: Precision = "f32",
    device: str = "cpu",
    rounds: int = 3,
    tokens: int | None = None,
) -> Benchmark:
    """Time every contestant in `rounds` rounds, on about `tokens` tokens (null: about twenty seconds' worth).

    ConfigError for an encoder or device that cannot be had; EncoderError where the contestants disagree;
    ClusterError where one of them fails.
    """
    require_esm2(encoder, "embed")
    if device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"benchmark embed: device {device!r} is not there; allowed here: cpu")
    choice = EncoderChoice(name=encoder, random_seed=_SEED, precision=precision)
    with tempfile.TemporaryDirectory(prefix="isoformer-benchmark-") as name:
        folder = Path(name)
        job = _prepared(choice, device, tokens, folder)
        outcomes = in_turns(_contestants(job, folder), rounds, most_seconds=_MOST_SECONDS)
        differences = _differences(job, folder)
    require_agreement(differences, precision)
    return _benchmark(job, outcomes, differences)


def require_agreement(differences: Mapping[str, float], precision: Precision) -> None:
    """EncoderError where a contestant did not make what the loop made."""
    for name, difference in differences.items():
        if not difference <= _AGREEMENT[precision]:
            raise EncoderError(
                f"benchmark embed: what {name} made differs from the loop's by {difference:.1e}, more than "
                f"{_AGREEMENT[precision]}: nothing is reported"
            )


def ratios_of(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Name → median over rounds of the rates' ratio, from seconds by contestant."""
    return {
        name: round(median_ratio(seconds[theirs], seconds[ours]), 4)
        for name, (theirs, ours) in RATIOS.items()
    }


def _prepared(choice: EncoderChoice, device: str, tokens: int | None, folder: Path) -> Job:
    proteins = sample_proteins(tokens or _enough_tokens(choice, device), least=_LEAST_PROTEINS)
    root = prepare_proteins(proteins, folder, shards=_SHARDS)
    return Job(
        choice=choice,
        resolution="pooled",
        device=device,
        threads=len(os.sched_getaffinity(0)),
        token_budget=CPU_BUDGET_TOKENS if device == "cpu" else GPU_BUDGET_TOKENS,
        rows=tuple(rows_of(root)),
    )


def _enough_tokens(choice: EncoderChoice, device: str) -> int:
    spec, cores = get_spec(choice), len(os.sched_getaffinity(0))
    flops = _STEADY_SECONDS * _ASSUMED_FLOPS_PER_SECOND[device] * (cores if device == "cpu" else 1)
    return min(int(flops / spec.flops(1)), _MOST_OUTPUT_BYTES // (2 * spec.width))


def _contestants(job: Job, folder: Path) -> dict[str, Callable[[], Outcome]]:
    contestants: dict[str, Callable[[], Outcome]] = {}
    for name, resolution in CONTESTANTS:
        place = folder / f"{name}_{resolution}"
        if name == "engine":
            config = engine_config(
                job.choice,
                resolution,
                place.with_suffix(".yaml"),
                actors=1 if job.device == "cuda" else job.threads,
                gpus_per_actor=1 if job.device == "cuda" else 0,
            )
            contestants[place.name] = partial(_engine, folder / "root", config, place, _tokens(job))
        else:
            file = replace(job, resolution=resolution).write(place.with_suffix(".job.json"))
            contestants[place.name] = partial(_process, name, file, place)
    return contestants


def _process(name: str, file: Path, place: Path) -> Outcome:
    _clear(place)
    program = "isoformer.benchmark.embed_contestants"
    said = program_json([program, name, str(file), str(place)], place.with_suffix(".said"))
    return Outcome(said["seconds"], {"loading_seconds": said["loading_seconds"]})


def _engine(prepared: Path, config: Path, place: Path, tokens: int) -> Outcome:
    """A cold run on a copy of the prepared root. The report is stored as soon as the last shard is."""
    _clear(place)
    shutil.copytree(prepared, place)
    started_at = time.time()
    command = ["isoformer", "embed", "--config", str(config), "--set", f"root={place}", "--json"]
    report = program_json(command, place.with_suffix(".said"))
    ended_at = time.time()
    if report["tokens"] != tokens:
        raise EncoderError(f"benchmark embed: the engine read {report['tokens']} tokens, the others {tokens}")
    done_at = (place / "reports" / "embed.json").stat().st_mtime
    return Outcome(
        report["actual_seconds"],
        {
            "startup_seconds": report["startup_seconds"],
            "cold_start_seconds": done_at - report["actual_seconds"] - started_at,
            "exit_seconds": ended_at - done_at,
        },
    )


def _clear(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.with_suffix(".started").unlink(missing_ok=True)


def _tokens(job: Job) -> int:
    return sum(len(one) for one in job.tokenised())


def _differences(job: Job, folder: Path) -> dict[str, float]:
    """Each contestant's largest difference from the loop's arrays at the same resolution."""
    width = get_spec(job.choice).width
    found = {}
    for resolution in ("pooled", "tokens"):
        ours = read_output(folder / f"loop_{resolution}", width)
        for name in (name for name, kept in CONTESTANTS if kept == resolution and name != "loop"):
            place = folder / f"{name}_{resolution}"
            theirs = _stored(place) if name == "engine" else read_output(place, width)
            found[place.name] = largest_difference(ours, theirs)
    return found


def _stored(root: Path) -> Vectors:
    """What the engine published: the only dataset under its root."""
    storage = open_storage(str(root))
    (manifest,) = [key for key in storage.list("embeddings/") if key.endswith("/manifest.json")]
    dataset = EmbeddingDataset.open(storage, "protein", manifest.split("/")[2])
    stored: Vectors = {}
    for shard in range(len(dataset)):
        stored |= dataset.read_shard(shard)
    return stored


def _benchmark(
    job: Job, outcomes: Mapping[str, Sequence[Outcome]], differences: Mapping[str, float]
) -> Benchmark:
    tokens = _tokens(job)
    seconds = {name: [one.seconds for one in found] for name, found in outcomes.items()}
    before = {
        f"{name}.{what}": [one.before[what] for one in found]
        for name, found in outcomes.items()
        for what in found[0].before
    }
    return Benchmark(
        "embed",
        settings={
            "encoder": job.choice.name,
            "weights": "random",
            "precision": job.choice.precision,
            "token_budget": job.token_budget,
            "padded_batch": SCRIPT_BATCH,
            "ray_data_batch": RAY_DATA_ROWS,
            "device": job.device,
            "threads": job.threads,
            "engine_actors": 1 if job.device == "cuda" else job.threads,
            "shards": _SHARDS,
        },
        rounds=len(next(iter(seconds.values()))),
        raw=_rounded({**seconds, **before}),
        ratios=ratios_of(seconds),
        notes=_notes(job, tokens, seconds, before, differences),
        hardware=machine(job.device, job.threads),
        versions=versions("torch", "transformers", "ray"),
    )


def _notes(
    job: Job,
    tokens: int,
    seconds: Mapping[str, Sequence[float]],
    before: Mapping[str, Sequence[float]],
    differences: Mapping[str, float],
) -> dict[str, Any]:
    return {
        "sequences": len(job.rows),
        "tokens": tokens,
        "tokens_per_second": {name: round(tokens / median(found)) for name, found in seconds.items()},
        "before_the_first_batch": {name: round(median(found), 2) for name, found in before.items()},
        "largest_difference": dict(differences),
    }


def _rounded(raw: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    return {name: [round(value, 4) for value in found] for name, found in raw.items()}
