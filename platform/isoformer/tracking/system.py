"""Samples of the machine for MLflow's "System metrics" tab: processor, memory and the first two GPUs.

MLflow's own monitors measure; the samples go through the tracker as any other metric does, so that a dead
server loses none. Few keys: a run holds 20 at most.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoformer.tracking.tracker import Tracker

KEYS = (
    "cpu_utilization_percentage",
    "system_memory_usage_megabytes",
    *(
        f"gpu_{number}_{what}"
        for number in range(2)
        for what in ("utilization_percentage", "memory_usage_megabytes")
    ),
)

logger = logging.getLogger(__name__)


@contextmanager
def sampled(tracker: Tracker, run: str) -> Iterator[None]:
    """Sample every `tracking.system_metrics_seconds`, and once at the end, while the block runs."""
    seconds = tracker.config.system_metrics_seconds
    if seconds is None or not tracker.is_active:
        yield
        return
    stop = threading.Event()
    sampler = threading.Thread(
        target=_sample, args=(tracker, run, seconds, stop), name="isoformer-system-metrics", daemon=True
    )
    sampler.start()
    try:
        yield
    finally:
        stop.set()
        sampler.join(timeout=10)


def _sample(tracker: Tracker, run: str, seconds: float, stop: threading.Event) -> None:
    try:
        monitors = _monitors()
        step, ended = 0, False
        while not ended:
            ended = stop.wait(seconds)
            tracker.log_metrics(run, _measured(monitors), step=step)
            step += 1
    except Exception as error:  # a sensor's or a driver's: the work goes on without it
        logger.warning("no more system metrics of run %s: %s", run, error)


def _monitors() -> list[Any]:
    """Those that this machine has, asked once: a share of time needs a beginning."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    monitors: list[Any] = []
    kinds: tuple[Any, ...] = (CPUMonitor, GPUMonitor)  # MLflow's have no annotations
    try:
        monitors.extend(kind() for kind in kinds)
    except (ImportError, RuntimeError) as error:  # no package, or no GPU
        logger.debug("no system metrics of GPUs: %s", error)
    _measured(monitors)
    return monitors


def _measured(monitors: list[Any]) -> dict[str, float]:
    values: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        values.update(monitor.aggregate_metrics())
        monitor.clear_metrics()
    return {f"system/{key}": values[key] for key in KEYS if key in values}
