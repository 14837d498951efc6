"""Fit one model on a pinned dataset: the loop that a single process, a Ray Train worker and a sweep's trial
all run.

    for each epoch: batches in the order of (seed, epoch) → error over known tissues → Adam
                    validation scores → best weights, early stopping → report → checkpoint

With several workers each takes its share of every batch and gradients are averaged, so that N workers follow
the path of one. Everything at a step is a pure function of the configuration, the data and (epoch, step): a
fit that is killed and resumed goes on bit for bit as if nothing had happened. No Ray here.

Shapes: B rows of a batch, V validation rows, K tissues.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isoformer.errors import IsoformerError
from isoformer.metrics import regression_metrics
from isoformer.model import IsoFormer
from isoformer.schema import Modality
from isoformer.training.batches import Batch, BatchFeed, parts_of
from isoformer.training.checkpoint import (
    FitState,
    Progress,
    read_checkpoint,
    replace_checkpoint,
    with_weights,
    write_checkpoint,
)
from isoformer.training.config import TrainConfig
from isoformer.training.data import PinnedDataset
from isoformer.training.objective import share_count, share_divergences, value_errors
from isoformer.training.optimiser import Averaged, new_optimizer
from isoformer.training.parallel import Replicas
from isoformer.training.statistics import redrawn_validation, train_statistics
from isoformer.training.streaming import new_feed

if TYPE_CHECKING:
    from isoformer.encoders.trainable import TrainableEncoder

__all__ = ["FitResult", "Report", "TrainConfig", "fit", "predict"]

Report = Callable[[dict[str, float], Callable[[Path], None] | None], None]
"""Called after each epoch with its metrics and, on rank zero, a function that writes a checkpoint into a
folder. It may raise to stop the fit; with `checkpoint_steps` it is also called within an epoch, with `epoch`
and `step` only."""


@dataclass(frozen=True)
class FitResult:
    """The best model on the CPU, what each epoch gave, and why the fit ended ("patience" or "epochs")."""

    model: IsoFormer
    history: list[dict[str, float]]
    best_epoch: int
    best: dict[str, float]
    stopped_by: str
    seconds: float
    parameters: dict[str, int]


def fit(
    config: TrainConfig,
    data: PinnedDataset,
    *,
    report: Report | None = None,
    checkpoint_dir: Path | None = None,
    resume_from: Path | None = None,
    may_differ: Collection[str] = (),
    rank: int = 0,
    world_size: int = 1,
) -> FitResult:
    """Train on the train split, stop by the validation split, give back the best epoch's model.

    `checkpoint_dir` keeps the newest checkpoint there; `resume_from` continues one exactly, or, where
    `may_differ` names what it may have been made with in another way ("train.learning_rate"), from its
    weights and optimiser. With `world_size` above one torch.distributed must be initialised. InputError for
    an empty split or inputs that all are missing; IsoformerError where the loss is no longer finite.
    """
    started = time.perf_counter()
    with _torch_settings(config):
        run = _Fit(config, data, rank, world_size)
        if resume_from is not None:
            run.resume(Path(resume_from), may_differ)
        while not run.is_over:
            run.train_epoch(report, checkpoint_dir)
            run.validate()
            run.publish(run.progress.history[-1], report, checkpoint_dir)
        return run.result(time.perf_counter() - started)


def predict(
    model: IsoFormer, data: PinnedDataset, rows: NDArray[np.int64], batch_size: int = 64
) -> NDArray[np.float32]:
    """Natural log(1 + TPM) of these rows, (rows, K)."""
    device = next(model.parameters()).device
    feed = new_feed(data, model.config.modalities, device)
    return _predicted(model, feed, rows, batch_size).cpu().numpy()


def new_model(config: TrainConfig, data: PinnedDataset) -> IsoFormer:
    """The model as a fit starts it; torch's seed decides what is random outside the encoders."""
    encoders: dict[Modality, TrainableEncoder] = {}
    if config.model.encoders:
        from isoformer.encoders.trainable import start_of

        encoders = {m: start_of(inside, seed=config.seed) for m, inside in config.model.encoders.items()}
    return IsoFormer(config.model, data.widths, data.target_names, encoders=encoders)


class _Fit:
    """The state of one fit; `fit` above tells the order of its steps."""

    def __init__(self, config: TrainConfig, data: PinnedDataset, rank: int, world_size: int) -> None:
        if config.validation == "redraw":
            data = redrawn_validation(data, config.validation_fraction, config.seed)
        data = data.subset(config.model.modalities)
        data.require_inputs(config.model.modalities, ("train",))
        self.config, self.data, self.rank, self.world_size = config, data, rank, world_size
        self.rows = {split: data.rows(split) for split in ("train", "validation")}
        self.device = device_named(config.device)
        self.feed = new_feed(data, config.model.modalities, self.device, config.stream_shards)
        torch.manual_seed(config.seed)
        groups_genes = config.isoform_ratio_weight > 0
        self.gene_N = np.unique(data.gene_ids, return_inverse=True)[1] if groups_genes else None
        self.model = new_model(config, data).to(self.device)
        self.model.set_statistics(*train_statistics(data, config.model))
        self.parameter_counts = self.model.parameter_counts()
        self.replicas = Replicas(self.model, world_size=world_size, sharded=config.parallel == "fsdp")
        self.optimizer = new_optimizer(self.model, config)
        self.averaged = Averaged(self.model, config.ema_decay) if config.ema_decay else None
        self.progress = Progress()
        self.best_weights = self.replicas.weights()
        self.wait_seconds = self.train_seconds = 0.0

    @property
    def is_over(self) -> bool:
        return self.stopped_by != ""

    @property
    def stopped_by(self) -> str:
        if self.progress.epochs_without_gain >= self.config.patience:
            return "patience"
        return "epochs" if self.progress.epoch >= self.config.epochs else ""

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.rows["train"]) / self.config.batch_size)

    def resume(self, folder: Path, may_differ: Collection[str]) -> None:
        self.progress, state = read_checkpoint(folder, self._made_from(), may_differ)
        self.replicas.load(state.latest, self.optimizer, state.optimizer)
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.config.weight_decay
        self.best_weights = dict(state.best)
        if self.averaged is not None:
            self.averaged.model.load_state_dict(dict(state.averaged or {}))

    def train_epoch(self, report: Report | None, checkpoint_dir: Path | None) -> None:
        """Do the steps of the epoch that are left."""
        progress, config = self.progress, self.config
        order = self.feed.order(
            self.rows["train"],
            config.batch_size,
            seed=config.seed,
            epoch=progress.epoch,
            gene_N=self.gene_N,
        )[progress.step :]
        parts = [self._parts(rows) for rows in order]
        started, self.wait_seconds = time.perf_counter(), 0.0
        self.model.train()
        batches = self._timed(self.feed.batches([part for of_step in parts for part in of_step]))
        for rows, of_step in zip(order, parts, strict=True):
            self._step(rows, batches, len(of_step))
            progress.step += 1
            if config.checkpoint_steps and progress.step % config.checkpoint_steps == 0:
                position = {"epoch": float(progress.epoch), "step": float(progress.step)}
                self.publish(position, report, checkpoint_dir)
        self.train_seconds = time.perf_counter() - started

    def validate(self) -> None:
        """Score the validation split, keep the best weights and close the epoch."""
        progress = self.progress
        scores = self._validation_scores()
        metrics = {
            "epoch": float(progress.epoch),
            "train_loss": progress.loss_sum / max(1.0, progress.value_count),
            **scores,
            "learning_rate": self._learning_rate(),
            "wait_share": self.wait_seconds / max(self.train_seconds, 1e-9),
            "transcripts_per_second": len(self.rows["train"]) / max(self.train_seconds, 1e-9),
        }
        score = -scores["val_loss"] if self.config.monitor == "val_loss" else scores[self.config.monitor]
        if progress.best_score is None or (not math.isnan(score) and score > progress.best_score):
            progress.best_score = -math.inf if math.isnan(score) else score
            progress.best_epoch, progress.epochs_without_gain = progress.epoch, 0
            self.best_weights = self.averaged.weights() if self.averaged else self.replicas.weights()
        else:
            progress.epochs_without_gain += 1
        progress.history.append(metrics)
        progress.epoch, progress.step, progress.loss_sum, progress.value_count = (
            progress.epoch + 1,
            0,
            0.0,
            0.0,
        )

    def publish(self, metrics: dict[str, float], report: Report | None, checkpoint_dir: Path | None) -> None:
        if checkpoint_dir is None and report is None:
            return
        state = FitState(
            self.replicas.weights(),
            self.best_weights,
            self.replicas.optimizer_state(self.optimizer),
            self.averaged.weights() if self.averaged else None,
        )

        def write(folder: Path) -> None:
            write_checkpoint(folder, self.model, state, self.progress, self._made_from())

        if checkpoint_dir is not None and self.rank == 0:
            replace_checkpoint(Path(checkpoint_dir), write)
        if report is not None:
            report(dict(metrics), write if self.rank == 0 else None)

    def result(self, seconds: float) -> FitResult:
        best_epoch = self.progress.best_epoch
        return FitResult(
            model=with_weights(self.model, self.best_weights) if self.best_weights else self.model,
            history=self.progress.history,
            best_epoch=best_epoch,
            best=self.progress.history[best_epoch],
            stopped_by=self.stopped_by,
            seconds=seconds,
            parameters=self.parameter_counts,
        )

    def _step(self, rows: NDArray[np.int64], batches: Iterator[Batch], parts: int) -> None:
        """A step of the optimiser on these rows; this worker's share are the next `parts` of `batches`."""
        progress, mask_BK = self.progress, self.data.target_mask[rows]
        torch.manual_seed(_step_seed(self.config.seed, progress.epoch, progress.step, self.rank))
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate() * group["rate_share"]
        known_count = float(mask_BK.sum())
        shares = share_count(self.gene_N[rows], mask_BK) if self.gene_N is not None else 0
        counts = len(self.feed.share(rows, self.rank, self.world_size, self.gene_N)) > 0
        self.optimizer.zero_grad(set_to_none=True)
        error_sum = torch.zeros((), device=self.device)
        for part in range(parts):
            batch = next(batches)
            with self.replicas.accumulating(is_last=part == parts - 1):
                errors, divergences = self._errors(batch, counts)
                loss = errors / max(1.0, known_count)
                loss = loss + self.config.isoform_ratio_weight * divergences / max(1, shares)
                torch.autograd.backward(loss * self.world_size)
            error_sum += errors.detach()
        if self.config.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update(self.model, progress.epoch * self.steps_per_epoch + progress.step + 1)
        total = float(_summed(error_sum, self.world_size))
        if not math.isfinite(total):
            raise IsoformerError(
                f"the loss is not finite at epoch {progress.epoch}, step {progress.step}: "
                f"lower train.learning_rate ({self.config.learning_rate}) or set train.gradient_clip"
            )
        progress.loss_sum += total
        progress.value_count += known_count

    def _parts(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """This worker's share of a batch, in parts; where there are fewer rows than workers, a row that will
        count nothing. With FSDP every worker must have as many parts as the others.
        """
        shares = [
            self.feed.share(rows, rank, self.world_size, self.gene_N) for rank in range(self.world_size)
        ]
        cut = [parts_of(share, self.config.micro_batch_size, self.gene_N) for share in shares]
        mine = [part if len(part) else rows[:1] for part in cut[self.rank]]
        return mine + [rows[:1]] * (max(len(parts) for parts in cut) - len(mine))

    def _errors(self, batch: Batch, counts: bool) -> tuple[Tensor, Tensor]:
        """Sums of the values' errors and of the isoform shares' divergences."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            predicted_BK = self.replicas.run(batch.tokens).float()
        mask_BK = batch.target_mask_BK if counts else torch.zeros_like(batch.target_mask_BK)
        targets_BK = self.model.standardise(batch.targets_BK)
        errors = value_errors(self.config, predicted_BK, targets_BK, mask_BK)
        if self.gene_N is None:
            return errors, torch.zeros_like(errors)
        natural_BK = predicted_BK * self.model.target_sd_K + self.model.target_mean_K
        gene_B = torch.from_numpy(self.gene_N[batch.rows]).to(self.device)
        return errors, share_divergences(natural_BK, batch.targets_BK, mask_BK, gene_B)

    def _validation_scores(self) -> dict[str, float]:
        rows, mean, sd = self.rows["validation"], self.model.target_mean_K.cpu(), self.model.target_sd_K.cpu()
        predicted_VK = self._predicted_by_all(rows)
        targets_VK = (torch.from_numpy(self.data.targets[rows]) - mean) / sd
        mask_VK = self.data.target_mask[rows]
        squared_VK = (predicted_VK - targets_VK).square().numpy()
        scores = regression_metrics(targets_VK.numpy(), predicted_VK.numpy(), mask_VK).mean
        loss = float(squared_VK[mask_VK].mean()) if mask_VK.any() else math.nan
        return {"val_loss": loss, **{f"val_{name}": value for name, value in scores.items()}}

    def _predicted_by_all(self, rows: NDArray[np.int64]) -> Tensor:
        """Standardised predictions (V, K): each worker fills its rows, the sum is everybody's."""
        predicted_VK = torch.zeros((len(rows), len(self.data.target_names)), device=self.device)
        turns = math.ceil(len(rows) / self.world_size)  # as many for each: FSDP needs all in every pass
        mine = np.arange(turns) * self.world_size + self.rank
        model = self.averaged.model if self.averaged else self.model
        at_once = self.config.micro_batch_size or self.config.batch_size
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            natural = _predicted(model, self.feed, rows[np.minimum(mine, len(rows) - 1)], at_once)
        own = mine < len(rows)
        predicted_VK[torch.from_numpy(mine[own])] = self.model.standardise(natural[torch.from_numpy(own)])
        return _summed(predicted_VK, self.world_size).cpu()

    def _learning_rate(self) -> float:
        step = self.progress.epoch * self.steps_per_epoch + self.progress.step
        warmup = self.config.warmup_epochs * self.steps_per_epoch
        if step < warmup:
            return self.config.learning_rate * (step + 1) / (warmup + 1)
        if self.config.schedule == "constant":
            return self.config.learning_rate
        share = (step - warmup) / max(1.0, self.config.epochs * self.steps_per_epoch - warmup)
        return self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.wait_seconds += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def _made_from(self) -> dict[str, Any]:
        running = {"workers", "max_failures", "checkpoint_steps", "threads", "device"}
        config = self.config.model_dump(mode="json", exclude=running)
        return {
            **{f"train.{key}": value for key, value in config.items()},
            "data fingerprint": self.data.fingerprint,
        }


def _predicted(model: IsoFormer, feed: BatchFeed, rows: NDArray[np.int64], batch_size: int) -> Tensor:
    order = feed.scoring_order(rows, batch_size)
    predicted = torch.empty((len(rows), len(model.target_names)), device=feed.device)
    model.eval()
    with torch.no_grad():
        batches = feed.batches([rows[places] for places in order])
        for places, batch in zip(order, batches, strict=True):
            predicted[torch.from_numpy(places)] = model.predict(batch.tokens)
    return predicted


def _summed(tensor: Tensor, world_size: int) -> Tensor:
    if world_size > 1:
        torch.distributed.all_reduce(tensor)
    return tensor


def _step_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, step, rank]).generate_state(1)[0])


def device_named(name: str) -> torch.device:
    """`auto` is the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@contextmanager
def _torch_settings(config: TrainConfig) -> Iterator[None]:
    """The configured threads and random state of our own, for the length of the fit only."""
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        torch.set_num_threads(threads)
