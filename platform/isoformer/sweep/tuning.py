"""Ray Tune set up for many light trials: no trainer inside a trial, actors reused, data mapped, not sent.

A trial whose training asks for several workers starts Ray Train; what its workers take is set aside for it,
so that no two trials can wait for each other's.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping

from ray.exceptions import RayError, RayTaskError

from isoformer.errors import ConfigError, IsoformerError
from isoformer.sweep import counters
from isoformer.sweep.config import SweepConfig
from isoformer.sweep.data import SharedData
from isoformer.sweep.search import StudyScheduler, StudySearcher
from isoformer.sweep.track_trials import TrackTrials


def concurrent_trials(config: SweepConfig, workers: int = 1) -> int:
    """Trials that fit at once. ConfigError where not even one does: Ray would wait for ever.

    `concurrent` in the configuration is taken at its word where more nodes may come (an autoscaler's).
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    fitting = sum(_fitting(resources, config) for resources in nodes) // workers
    if fitting == 0 and config.concurrent is None:
        largest = {name: max((node.get(name, 0) for node in nodes), default=0) for name in ("CPU", "GPU")}
        each = f"{config.cpus:g} CPU and {config.gpus:g} GPU"
        asked = f"{workers} workers of {each} each" if workers > 1 else each
        raise ConfigError(
            f"a trial asks for {asked}, and the cluster has no room: its largest node has "
            f"{largest['CPU']:g} CPU and {largest['GPU']:g} GPU; lower sweep.cpus, sweep.gpus or "
            f"train.workers, or, where nodes are added on demand, give sweep.concurrent"
        )
    if config.concurrent is not None and (fitting == 0 or len(nodes) > 1):
        return config.concurrent
    if len(nodes) == 1:  # logical CPUs of a local cluster may be more than the machine's
        here = int(len(os.sched_getaffinity(0)) // (config.cpus * workers))
        fitting = max(1, min(fitting, here))
    return min(fitting, config.concurrent or fitting)


def _fitting(resources: Mapping[str, float], config: SweepConfig) -> int:
    shares = [resources.get("CPU", 0) / config.cpus]
    shares += [resources.get("GPU", 0) / config.gpus] if config.gpus else []
    return int(min(shares))


def run_trials(
    searcher: StudySearcher,
    callback: TrackTrials,
    shared: SharedData,
    *,
    trials: int,
    concurrent: int,
) -> None:
    """Run `trials` trials; results reach the study and the tracker through searcher and callback.

    Ray Tune may start more than that many of its own: one whose worker dies is, in the study, the same trial
    still. It would restart one itself, but not one that dies while a reused worker turns to it.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # an interrupt is ours: the study can go on
    from ray import tune

    from isoformer.sweep.trial import run_trial

    _keep_credentials_to_themselves()
    logging.getLogger("ray.tune.execution.tune_controller").addFilter(_without_traceback)
    config = searcher.config
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, shared=shared), _resources(config, searcher.base.workers)
    )
    with tempfile.TemporaryDirectory(prefix="isoformer-sweep-") as scratch:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=StudyScheduler(searcher),
                num_samples=trials * (1 + config.max_failures),
                max_concurrent_trials=concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=config.study,
                storage_path=scratch,
                callbacks=[callback],
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),  # the searcher gives them out again
            ),
        )
        counters.slots(searcher, concurrent)
        tuner.fit()
        counters.slots(searcher, 0)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Ray Tune logs every error with its traceback. Of a worker that died a line is enough: its trial goes on
    elsewhere. An error of ours ends the sweep, and is what the command says.
    """
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, RayError) and not isinstance(error, RayTaskError):
        record.msg, record.args, record.exc_info = f"{record.getMessage()}: {type(error).__name__}", (), None
    return not isinstance(error, IsoformerError)


def _keep_credentials_to_themselves() -> None:
    """Ray Tune would put those of S3 into the runtime environment of each trial, which Ray logs and its
    dashboard shows. Trials find them as the workers of all other stages do.
    """
    from ray.tune.execution import class_cache

    names = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE -= names


def _resources(config: SweepConfig, workers: int) -> dict[str, float]:
    """Of the process of a trial; the workers of one with several take theirs through Ray Train."""
    alone = {"cpu": config.cpus, "gpu": config.gpus}
    return alone if workers == 1 else {"memory": 1.0}  # one byte: Tune refuses a trial that takes nothing
