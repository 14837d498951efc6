"""The searches that `isoformer benchmark sweep` compares, as their users would write them.

All do the same trials: the same learning rates and seed, the same `fit`, every epoch's score reported. Each
returns the clock (`time.time`) at which each of its trials had ended, in order.

    ours      `isoformer.sweep`: data read once and shared, workers reused, the study in SQLite, MLflow on
    ray_tune  Ray Tune with a function trainable that loads its own data, nothing else set
    optuna    one process: data read once, `study.optimize` on a study in SQLite
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoformer.sweep import SearchSpace, SweepConfig, SweepResult
from isoformer.training.config import TrainConfig

METRIC = "val_r2"


@dataclass(frozen=True)
class Job:
    """Trials to be done under a root: `config` with each of the learning rates, so many at once."""

    root: str
    config: TrainConfig
    rates: tuple[float, ...]
    at_once: int


def run_ours(job: Job, study: str, *, tracking: bool = True) -> tuple[list[float], SweepResult]:
    """The clock at every end, and what the sweep found."""
    from isoformer.config import build
    from isoformer.sweep import sweep
    from isoformer.tracking import TrackingConfig

    ends: list[float] = []
    low, high = min(job.rates), max(job.rates)
    rate = {"path": "learning_rate", "low": low, "high": high, "log": True, "points": len(job.rates)}
    config = SweepConfig(
        study=study,
        trials=len(job.rates),
        keys={modality: (key,) for modality, key in job.config.keys.items()},
        space=build(SearchSpace, {"rate": rate}),
        sampler="grid",
        scheduler="none",
        concurrent=job.at_once,
        metric="val_r2",
    )
    result = sweep(
        config,
        job.config,
        job.root,
        tracking=TrackingConfig(enabled=tracking),
        progress=lambda row: ends.append(time.time()),
    )
    return ends, result


def run_ray_tune(job: Job) -> list[float]:
    """Ray Tune's defaults with a grid over the rates; Ray must be connected."""
    from ray import tune

    with tempfile.TemporaryDirectory(prefix="isoformer-benchmark-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(plain_trainable, {"cpu": 1}),
            param_space={
                "learning_rate": tune.grid_search(list(job.rates)),
                "root": job.root,
                "train": job.config.model_dump(mode="json"),
            },
            tune_config=tune.TuneConfig(metric=METRIC, mode="max", max_concurrent_trials=job.at_once),
            run_config=tune.RunConfig(storage_path=scratch, verbose=0),
        )
        results = tuner.fit()
        if results.errors:
            raise RuntimeError(f"a trial of plain Ray Tune failed: {results.errors[0]}")
        last = [results[place].metrics or {} for place in range(len(results))]
        return sorted(float(metrics["ended"]) for metrics in last)


def plain_trainable(config: dict[str, Any]) -> None:
    """A trial as users write one: load, fit, report every epoch."""
    from ray import tune

    from isoformer.training.data import load_dataset
    from isoformer.training.loop import fit

    settings = TrainConfig.model_validate({**config["train"], "learning_rate": config["learning_rate"]})
    data = load_dataset(config["root"], settings.keys)

    def report(metrics: dict[str, float], checkpoint: Any) -> None:
        tune.report({METRIC: metrics[METRIC], "epoch": metrics["epoch"], "ended": time.time()})

    fit(settings, data, report=report)


def run_optuna(job: Job, threads: int) -> list[float]:
    """`study.optimize` in a process of its own, with so many threads of torch."""
    with tempfile.TemporaryDirectory(prefix="isoformer-benchmark-") as scratch:
        job_file = Path(scratch, "job.json")
        settings = job.config.edited(threads=threads).model_dump_json()
        rates = ",".join(map(repr, job.rates))
        job_file.write_text(settings, encoding="utf-8")
        command = [sys.executable, "-m", __name__, job.root, str(job_file), rates, scratch]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
        if done.returncode:
            raise RuntimeError(f"plain Optuna failed: {done.stderr[-2000:]}")
        return [float(line) for line in done.stdout.split()]


def plain_optuna(root: str, job_file: str, rates: list[float], scratch: str) -> None:
    """What the process does: prints the clock at every end."""
    import optuna

    from isoformer.training.data import load_dataset
    from isoformer.training.loop import fit

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = TrainConfig.model_validate_json(Path(job_file).read_text(encoding="utf-8"))
    data = load_dataset(root, settings.keys)

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_categorical("learning_rate", rates)

        def report(metrics: dict[str, float], checkpoint: Any) -> None:
            trial.report(metrics[METRIC], int(metrics["epoch"]))

        return fit(settings.edited(learning_rate=rate), data, report=report).best[METRIC]

    study = optuna.create_study(
        storage=f"sqlite:///{scratch}/study.db",
        direction="maximize",
        sampler=optuna.samplers.GridSampler({"learning_rate": rates}, seed=0),
    )
    study.optimize(
        objective, n_trials=len(rates), callbacks=[lambda study, trial: print(time.time(), flush=True)]
    )


if __name__ == "__main__":
    plain_optuna(sys.argv[1], sys.argv[2], [float(rate) for rate in sys.argv[3].split(",")], sys.argv[4])
