"""One trial: `fit` on the shared data, reporting each epoch to Ray Tune. Nothing is tracked from in here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from isoformer.config import build
from isoformer.sweep.data import SharedData

Send = Callable[[dict[str, Any]], None]
REPORTED = ("train_loss", "val_loss", "val_r2", "val_spearman")


def run_trial(config: dict[str, Any], shared: SharedData) -> None:
    """What Ray Tune calls. `config` holds the resolved training configuration and the metric's name."""
    from ray import tune

    search(config["train"], shared, metric=config["metric"], send=tune.report)


def search(train: Mapping[str, Any], shared: SharedData, *, metric: str, send: Send) -> None:
    """Fit, and send one result an epoch and a last one with `finished`; an error is a result, too.

    `score` is the validation score of the epoch that the fit would keep now: what its model would have.
    """
    from isoformer.training.config import TrainConfig
    from isoformer.training.loop import fit

    started = time.perf_counter()
    reporter = _Reporter(metric, send, started)
    try:
        settings = build(TrainConfig, train)
        reporter.monitor = settings.monitor
        keys = {modality: settings.keys[modality] for modality in settings.model.modalities}
        result = fit(settings, shared.dataset(keys), report=reporter)
    except Exception as error:  # a failing trial is reported with its error and does not end the sweep
        send({**reporter.last, "finished": True, "error": f"{type(error).__name__}: {error}"[:500]})
        return
    seconds = time.perf_counter() - started
    send({**reporter.last, "score": result.best[metric], "finished": True, "seconds": seconds})


class _Reporter:
    """`fit`'s report callback: knows the epoch that is kept, sends one result an epoch."""

    monitor = "val_loss"

    def __init__(self, metric: str, send: Send, started: float) -> None:
        self.last: dict[str, Any] = {
            "epoch": -1,
            "score": -math.inf,
            "finished": False,
            "error": "",
            "seconds": 0.0,
        }
        self._best = -math.inf
        self._metric = metric
        self._send = send
        self._started = started

    def __call__(self, metrics: dict[str, float], checkpoint: Callable[[Path], None] | None) -> None:
        if self._metric not in metrics:  # a checkpoint within an epoch
            return
        watched = metrics[self.monitor] * (-1 if self.monitor == "val_loss" else 1)
        is_kept = watched > self._best
        self._best = watched if is_kept else self._best
        self.last = {
            **self.last,
            "epoch": int(metrics["epoch"]),
            "score": metrics[self._metric] if is_kept else self.last["score"],
            "seconds": time.perf_counter() - self._started,
            **{name: metrics[name] for name in REPORTED if name in metrics},
        }
        self._send(self.last)
