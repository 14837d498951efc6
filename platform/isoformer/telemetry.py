"""What the stages tell Prometheus, through Ray's metrics: every name, what it means and its labels.

Drivers count, once a shard, an epoch or a trial; workers show how they are. Ray collects from every process
and puts `ray_` before each name; `dashboards/` draws them. In a process without Ray nothing is done, and
nothing that Ray's metrics meet reaches the work they describe.

Labels have few values: encoders, runs, studies, states; never a transcript, a shard or a trial.
"""

from __future__ import annotations

import atexit
import logging
import math
import sys
import threading
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

SECONDS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0)

REFRESH_SECONDS: Final = 2.0
"""Ray forgets a gauge that is not told again within two of its reports (20 s, and 2 s at its quickest)."""

logger = logging.getLogger(__name__)
_shown: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}


@dataclass(frozen=True)
class Metric:
    """A counter ends in `_total`; a histogram is of seconds."""

    kind: Literal["counter", "gauge", "histogram"]
    description: str
    labels: tuple[str, ...] = ()


_EMBEDDING: Final = {
    "isoformer_tokens_total": Metric("counter", "Real tokens encoded", ("encoder",)),
    "isoformer_sequences_total": Metric("counter", "Distinct sequences encoded", ("encoder",)),
    "isoformer_reused_total": Metric(
        "counter", "Sequences whose rows were copied from earlier shards", ("encoder",)
    ),
    "isoformer_shards_total": Metric("counter", "Shards published, over all datasets", ("encoder",)),
    "isoformer_bytes_written_total": Metric("counter", "Bytes of published shards", ("encoder",)),
    "isoformer_quarantined_total": Metric("counter", "Sequences set aside, by reason", ("encoder", "reason")),
    "isoformer_out_of_memory_total": Metric("counter", "Times a token budget was halved", ("encoder",)),
    "isoformer_failures_total": Metric(
        "counter", "Workers lost, stalled, or refused by storage, by kind", ("encoder", "kind")
    ),
    "isoformer_pack_tokens_total": Metric(
        "counter", "Tokens of packs as they are encoded; of a shard that is done again, again", ("encoder",)
    ),
    "isoformer_padding_fraction": Metric(
        "gauge", "Part of the last shard's tokens that was padding", ("encoder",)
    ),
    "isoformer_device_busy_fraction": Metric(
        "gauge", "Part of a worker's time since its first pack that its device was busy", ("encoder",)
    ),
    "isoformer_token_budget": Metric("gauge", "Tokens of one pack", ("encoder",)),
    "isoformer_duplicates_saved": Metric(
        "gauge", "Transcripts of the dataset whose sequence is encoded once for several", ("encoder",)
    ),
    "isoformer_shards_left": Metric("gauge", "Shards that the run has still to do", ("encoder",)),
    "isoformer_tokens_left": Metric("gauge", "Tokens that the run has still to encode", ("encoder",)),
    "isoformer_queue": Metric("gauge", "Shards on their way to a worker, by stage", ("stage",)),
    "isoformer_workers": Metric("gauge", "Embedding workers, by state", ("state",)),
    "isoformer_pack_seconds": Metric("histogram", "Time that one pack takes its device", ("encoder",)),
    "isoformer_shard_seconds": Metric(
        "histogram", "Time of a shard, by phase: encode, publish", ("encoder", "phase")
    ),
}
_TRAINING: Final = {
    "isoformer_train_epochs_total": Metric("counter", "Epochs trained and validated", ("run",)),
    "isoformer_train_transcripts_total": Metric(
        "counter", "The train split, an epoch after another", ("run",)
    ),
    "isoformer_train_epochs_planned": Metric("gauge", "Epochs at most", ("run",)),
    "isoformer_train_workers": Metric("gauge", "Workers of a run that goes on; 0 at its end", ("run",)),
    "isoformer_train_loss": Metric("gauge", "Loss of the last epoch, by split", ("run", "split")),
    "isoformer_train_score": Metric("gauge", "Validation score of the last epoch", ("run", "metric")),
    "isoformer_train_learning_rate": Metric("gauge", "At the end of the last epoch", ("run",)),
    "isoformer_train_wait_fraction": Metric(
        "gauge", "Part of the last epoch's training that waited for data", ("run",)
    ),
    "isoformer_train_checkpoint_seconds": Metric(
        "histogram", "Time to write a checkpoint and put it on the storage", ("run",)
    ),
}
_SWEEP: Final = {
    "isoformer_sweep_trials_total": Metric("counter", "Trials that ended, by state", ("study", "state")),
    "isoformer_sweep_epochs_total": Metric("counter", "Epochs reported by trials", ("study",)),
    "isoformer_sweep_worker_deaths_total": Metric("counter", "Trials whose workers died", ("study",)),
    "isoformer_sweep_device_seconds_total": Metric("counter", "Device seconds of ended trials", ("study",)),
    "isoformer_sweep_training_seconds_total": Metric(
        "counter", "Of complete trials' seconds: those that trained", ("study",)
    ),
    "isoformer_sweep_trials_running": Metric("gauge", "Trials that run now", ("study",)),
    "isoformer_sweep_slots": Metric("gauge", "Trials that may run at once", ("study",)),
    "isoformer_sweep_trials_planned": Metric("gauge", "Trials that the study is to hold", ("study",)),
    "isoformer_sweep_best_score": Metric("gauge", "Best complete trial so far", ("study", "metric")),
    "isoformer_sweep_trial_seconds": Metric("histogram", "Time of a trial, by state", ("study", "state")),
}
_TRACKING: Final = {
    "isoformer_tracking_waiting": Metric("gauge", "Events in the journal that MLflow has not taken yet"),
    "isoformer_tracking_refused_total": Metric("counter", "Events that MLflow refused for good"),
}
METRICS: Final = {**_EMBEDDING, **_TRAINING, **_SWEEP, **_TRACKING}


def count(name: str, value: float = 1.0, **labels: str) -> None:
    """Add to a counter of `METRICS`; nothing is added where `value` is 0."""
    if value > 0:
        _record(name, "inc", value, labels)


def show(name: str, value: float | None, **labels: str) -> None:
    """Set a gauge of `METRICS`, and keep it at that; what is not defined is not shown."""
    if value is not None and math.isfinite(value):
        _record(name, "set", value, labels)
        if _is_connected():
            _shown[name, tuple(sorted(labels.items()))] = value
            _keep_showing()


def observe(name: str, seconds: float, **labels: str) -> None:
    """Add to a histogram of `METRICS`."""
    _record(name, "observe", seconds, labels)


def _record(name: str, how: Literal["inc", "set", "observe"], value: float, labels: dict[str, str]) -> None:
    """ValueError for labels that the metric does not have, with Ray or without: a mistake in the caller."""
    if set(labels) != set(METRICS[name].labels):
        raise ValueError(f"{name}: labels {sorted(labels)}; it has {sorted(METRICS[name].labels)}")
    if not _is_connected():
        return
    try:
        getattr(_metric(name), how)(float(value), tags=labels)
    except Exception as error:  # Ray's, while it goes down: a run is worth more than its figures
        logger.debug("%s was not told to Prometheus: %s", name, error)


@cache
def _keep_showing() -> None:
    """Start the one thread of this process that tells its gauges again; it ends before Ray does."""
    stop = threading.Event()
    threading.Thread(target=_show_again, args=(stop,), name="isoformer-telemetry", daemon=True).start()
    atexit.register(stop.set)


def _show_again(stop: threading.Event) -> None:
    while not stop.wait(REFRESH_SECONDS):
        if not _is_connected():
            _shown.clear()  # of a session that is over
        for (name, labels), value in list(_shown.items()):
            _record(name, "set", value, dict(labels))


def _is_connected() -> bool:
    """Asked without importing Ray: what binds it to loopback must be in the environment before that. Another
    thread may be at importing it.
    """
    is_initialized = getattr(sys.modules.get("ray"), "is_initialized", None)
    return is_initialized is not None and bool(is_initialized())


@cache
def _metric(name: str) -> Any:
    from ray.util import metrics

    metric = METRICS[name]
    if metric.kind == "histogram":
        return metrics.Histogram(name, metric.description, list(SECONDS), metric.labels)
    kinds = {"counter": metrics.Counter, "gauge": metrics.Gauge}
    return kinds[metric.kind](name, metric.description, metric.labels)
