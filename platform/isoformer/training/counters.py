"""What a training run tells Prometheus, from its driver: each epoch as rank zero reports it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from isoformer.telemetry import count, observe, show

if TYPE_CHECKING:
    from isoformer.training.config import TrainConfig


def began(run: str, config: TrainConfig) -> None:
    """Workers are started."""
    show("isoformer_train_workers", config.workers, run=run)
    show("isoformer_train_epochs_planned", config.epochs, run=run)


def ended(run: str) -> None:
    """However it ended."""
    show("isoformer_train_workers", 0, run=run)


def reported(run: str, message: Mapping[str, Any], transcripts: int) -> None:
    """A checkpoint is there, at the end of an epoch over `transcripts` or within one."""
    metrics: Mapping[str, float] = message["metrics"]
    observe("isoformer_train_checkpoint_seconds", message["checkpoint_seconds"], run=run)
    if "step" in metrics:
        return
    count("isoformer_train_epochs_total", run=run)
    count("isoformer_train_transcripts_total", transcripts, run=run)
    show("isoformer_train_loss", metrics.get("train_loss"), run=run, split="train")
    show("isoformer_train_loss", metrics.get("val_loss"), run=run, split="validation")
    for metric in ("r2", "spearman"):
        show("isoformer_train_score", metrics.get(f"val_{metric}"), run=run, metric=metric)
    show("isoformer_train_learning_rate", metrics.get("learning_rate"), run=run)
    show("isoformer_train_wait_fraction", metrics.get("wait_share"), run=run)
