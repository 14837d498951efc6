"""The best trials fitted anew: several seeds each, as runs of their own, scored once on the test genes.

    <root>/runs/<study>-top1-seed0/, …    whole runs, as `isoformer train` makes them
    <root>/studies/<study>/finals.json    which trial each is of, its scores, mean and deviation over seeds

The sweep itself never sees a test gene. Each run is a light Ray task on one worker's resources; one that was
finished before, or scored, is not done again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from isoformer.config import build
from isoformer.errors import ConfigError, StorageError
from isoformer.storage import open_storage
from isoformer.sweep.config import SweepConfig
from isoformer.sweep.results import ranked
from isoformer.tracking import local_path

if TYPE_CHECKING:
    from isoformer.sweep.results import SweepResult
    from isoformer.training.config import TrainConfig
    from isoformer.training.data import PinnedDataset

VERSION: Final = 1
SCORES: Final = ("r2", "spearman", "pearson")
Done = Callable[[int, int, str], None]


@dataclass(frozen=True)
class FinalRun:
    """One of the final models: a trial's configuration with a seed."""

    rank: int
    trial: int
    seed: int
    name: str
    config: TrainConfig


def final_runs(result: SweepResult, config: SweepConfig) -> list[FinalRun]:
    """The runs of the best trials, best first. ConfigError where the sweep has fewer complete ones."""
    best = ranked(result.trials)
    if len(best) < config.final.top:
        raise ConfigError(f"sweep.final.top {config.final.top}: the study has {len(best)} complete trials")
    asked = {name: getattr(config.final, name) for name in ("epochs", "patience")}
    changed = {name: value for name, value in asked.items() if value is not None}
    return [
        FinalRun(
            rank=rank,
            trial=row.number,
            seed=seed,
            name=f"{config.study}-top{rank}-seed{seed}",
            config=result.configs[row.number].edited(seed=seed, **changed),
        )
        for rank, row in enumerate(best[: config.final.top], 1)
        for seed in config.final.seeds
    ]


def fit_finals(runs: Sequence[FinalRun], config: SweepConfig, root: str, *, done: Done | None = None) -> None:
    """Fit every run that is not finished, as many at once as trials. Ray must be connected.

    Raises what `fit` raises, and FingerprintError where a run of a name is of something else.
    """
    import ray

    from isoformer.sweep.tuning import concurrent_trials
    from isoformer.training.data import load_dataset

    fit_task = ray.remote(_fit_final).options(
        num_cpus=config.cpus, num_gpus=config.gpus, max_retries=config.max_failures
    )
    where = str(local_path(root) or root)
    shared: dict[str, Any] = {}
    waiting: dict[Any, FinalRun] = {}
    concurrent = concurrent_trials(config)
    left = list(runs)
    while left or waiting:
        while left and len(waiting) < concurrent:
            run = left.pop(0)
            key = json.dumps([run.config.keys, sorted(run.config.model.encoders)], sort_keys=True)
            if key not in shared:
                data = load_dataset(root, run.config.keys, encoders=run.config.model.encoders, mode="pinned")
                shared[key] = ray.put(data)
            task = fit_task.remote(run.config.model_dump(mode="json"), where, run.name, shared[key])
            waiting[task] = run
        (ended, *_), _ = ray.wait(list(waiting), num_returns=1)
        run = waiting.pop(ended)
        ray.get(ended)
        if done is not None:
            done(len(runs) - len(left) - len(waiting), len(runs), run.name)


def score_finals(
    runs: Sequence[FinalRun], result: SweepResult, root: str, *, draws: int, done: Done | None = None
) -> dict[str, Any]:
    """Score each on the test genes, unless it has been, and write finals.json; returns what it says."""
    from isoformer.evaluate import evaluate, read_evaluation
    from isoformer.training.runs import RunFolder
    from isoformer.training.seeds import spreads

    storage = open_storage(root)
    params = {row.number: row.params for row in result.trials}
    models: dict[int, dict[str, Any]] = {}
    for number, run in enumerate(runs, 1):
        try:
            evaluation = read_evaluation(root, run.name)
        except StorageError:
            evaluation = evaluate(root, run.name, draws=draws)
        row = evaluation.table.rows[0]
        best = RunFolder(storage, run.name).summary()["best"]
        model = models.setdefault(
            run.rank, {"rank": run.rank, "trial": run.trial, "params": params[run.trial], "runs": []}
        )
        model["runs"].append(
            {
                "run": run.name,
                "seed": run.seed,
                "val": {name: best[name] for name in ("val_r2", "val_spearman")},
                "test": {name: getattr(row, name).value for name in SCORES},
            }
        )
        if done is not None:
            done(number, len(runs), run.name)
    for model in models.values():
        found = spreads([one["test"] for one in model["runs"]])
        model["test_mean"] = {name: found[name].mean if name in found else None for name in SCORES}
        sds = {name: spread.sd for name, spread in found.items()}
        model["test_sd"] = sds if len(model["runs"]) > 1 else None
    written = {"version": VERSION, "study": result.study, "models": list(models.values())}
    storage.write_bytes(finals_key(result.study), json.dumps(written, indent=1).encode())
    return written


def finals_key(study: str) -> str:
    """Of finals.json."""
    return f"studies/{study}/finals.json"


def _fit_final(train: dict[str, Any], root: str, run: str, data: PinnedDataset) -> None:
    """What a Ray task runs: claim the run's folder, fit from its newest checkpoint, finish it."""
    from isoformer.training.config import TrainConfig
    from isoformer.training.runs import RunFolder, run_settings
    from isoformer.training.workers import fit_in_folder

    config = build(TrainConfig, train).edited(data="pinned")
    own = data.subset(config.model.modalities)
    settings = run_settings(config, own, run)
    folder = RunFolder(open_storage(root), run)
    folder.claim(settings, resume=True)
    if not folder.is_finished:
        fit_in_folder(settings.train, own, folder, outbox=lambda message: None)
