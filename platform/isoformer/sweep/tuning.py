"""Ray Tune set up for many light trials: no trainer inside a trial, actors reused, data mapped, not sent."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isoformer.errors import ConfigError
from isoformer.sweep.config import SweepConfig
from isoformer.sweep.data import SharedData
from isoformer.sweep.search import StudySearcher, TrackTrials


@dataclass(frozen=True)
class Budget:
    """How many more trials, and how many of them at once."""

    trials: int
    concurrent: int


def concurrent_trials(config: SweepConfig) -> int:
    """Trials that fit at once. ConfigError where not even one does: Ray would wait for ever."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    fitting = sum(_fitting(resources, config) for resources in nodes)
    if fitting == 0:
        largest = {name: max((node.get(name, 0) for node in nodes), default=0) for name in ("CPU", "GPU")}
        raise ConfigError(
            f"a trial asks for {config.cpus:g} CPU and {config.gpus:g} GPU, no node has that: {largest}"
        )
    if len(nodes) == 1:  # logical CPUs of a local cluster may be more than the machine's
        fitting = min(fitting, max(1, int(len(os.sched_getaffinity(0)) // config.cpus)))
    return min(fitting, config.concurrent or fitting)


def _fitting(resources: Mapping[str, float], config: SweepConfig) -> int:
    shares = [resources.get("CPU", 0) / config.cpus]
    shares += [resources.get("GPU", 0) / config.gpus] if config.gpus else []
    return int(min(shares))


def run_trials(
    searcher: StudySearcher, callback: TrackTrials, config: SweepConfig, shared: SharedData, budget: Budget
) -> None:
    """Run `budget.trials` trials; results reach the study and the tracker through searcher and callback."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # an interrupt is ours: the study can go on
    from ray import tune

    from isoformer.sweep.trial import run_trial

    trainable = tune.with_resources(
        tune.with_parameters(run_trial, shared=shared), {"cpu": config.cpus, "gpu": config.gpus}
    )
    with tempfile.TemporaryDirectory(prefix="isoformer-sweep-") as scratch:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=_scheduler(config, searcher.base.epochs),
                num_samples=budget.trials,
                max_concurrent_trials=budget.concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=config.study,
                storage_path=scratch,
                callbacks=[callback],
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )
        tuner.fit()


def _scheduler(config: SweepConfig, epochs: int) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if not config.prune or config.grace_epochs >= epochs:
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    return ASHAScheduler(
        time_attr="training_iteration",
        metric="score",
        mode="max",
        max_t=epochs + 2,  # never reached: a trial ends by itself
        grace_period=config.grace_epochs,
        reduction_factor=config.reduction,
    )
