"""One configuration fitted with several seeds: a run each, and how far they lie apart.

runs/<run>-seed<seed>/   a whole run of every seed
runs/<run>/seeds.json    their names, mean and standard deviation of each one's best epoch
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from isoformer.documents import stored_mapping
from isoformer.errors import StorageError, shortened
from isoformer.storage import Storage

RUN_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]*"
TIMES: Final = ("epoch", "wait_share", "transcripts_per_second", "learning_rate")


@dataclass(frozen=True)
class Spread:
    """Over seeds; `sd` is null for one."""

    mean: float
    sd: float | None


def seed_run(run: str, seed: int) -> str:
    """The name of a seed's run."""
    return f"{run}-seed{seed}"


def spreads(best: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """Of each metric that is defined for every seed."""
    names = [name for name in best[0] if name not in TIMES]
    found = {}
    for name in names:
        values = np.array([one.get(name, math.nan) for one in best], dtype=np.float64)
        if np.isfinite(values).all():
            sd = float(values.std(ddof=1)) if len(values) > 1 else None
            found[name] = Spread(float(values.mean()), sd)
    return found


def write_seeds(storage: Storage, run: str, seeds: Sequence[int], found: Mapping[str, Spread]) -> None:
    """seeds.json."""
    described: dict[str, Any] = {
        "runs": [seed_run(run, seed) for seed in seeds],
        "metrics": {name: {"mean": spread.mean, "sd": spread.sd} for name, spread in found.items()},
    }
    storage.write_bytes(_key(run), json.dumps(described, indent=1).encode())


def read_seed_runs(storage: Storage, run: str) -> list[str]:
    """The runs of the seeds. StorageError where there are none under this name."""
    if not storage.exists(_key(run)):
        raise StorageError(f"{storage.uri}/{_key(run)}: there is no such set; train it with --seeds")
    runs: list[str] = stored_mapping(storage, _key(run), {"runs": list})["runs"]
    if not all(isinstance(name, str) and re.fullmatch(RUN_NAME, name) for name in runs):
        raise StorageError(f"{storage.uri}/{_key(run)}: runs must be names of runs, got {shortened(runs)}")
    return runs


def is_seed_set(storage: Storage, run: str) -> bool:
    """Whether the name is that of a set of seeds, not of one run."""
    return storage.exists(_key(run))


def _key(run: str) -> str:
    return f"runs/{run}/seeds.json"
