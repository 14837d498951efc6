"""Train one run on Ray Train: 1 to N workers, one storage root, a folder that is finished or can be resumed.

`train` loads the data once, shares it through the object store, and starts the workers; each runs the same
`fit`. Rank zero puts a checkpoint on the storage after each epoch and sends the epoch's metrics to the
driver, where they reach the tracker and the progress callback while training goes on. A worker that dies is
started again and goes on from the newest checkpoint; so does a driver that is started again with `resume`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from isoformer.storage import open_storage
from isoformer.training.config import TrainConfig
from isoformer.training.data import PinnedDataset, load_dataset
from isoformer.training.joined_tokens import with_located_weights
from isoformer.training.runs import RunFolder, RunSettings, run_settings
from isoformer.training.workers import run_workers

Progress = Callable[[dict[str, float]], None]


class RunTracker(Protocol):
    """What `train` needs of a tracker: one open run of it, which copies a file before it returns."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...
    def log_artifact(self, path: str) -> None: ...
    def set_tags(self, tags: Mapping[str, str]) -> None: ...


@dataclass(frozen=True)
class TrainResult:
    """A finished run. `reused`: it was there already, and nothing was trained."""

    run: str
    uri: str
    fingerprint: str
    best: dict[str, float]
    best_epoch: int
    epochs: int
    stopped_by: str
    seconds: float
    parameters: int
    parameter_counts: dict[str, int]
    history: list[dict[str, float]]
    reused: bool = False


def train(
    config: TrainConfig,
    root: str,
    *,
    run: str | None = None,
    resume: bool = False,
    tracker: RunTracker | None = None,
    progress: Progress | None = None,
    data: PinnedDataset | None = None,
) -> TrainResult:
    """Fit `config` on the dataset under `root` and write `runs/<run>/` there. Ray must be connected.

    `data` saves reading the dataset again. Raises what `load_dataset` and `fit` raise; FingerprintError or
    StorageError where the folder is taken (see `RunFolder.claim`); ClusterError where workers keep dying.
    """
    config = config.edited(model=with_located_weights(config.model, open_storage(root)))
    data = data or load_dataset(root, config.keys, encoders=config.model.encoders, mode=config.data)
    config = config.edited(data="streamed" if data.is_streamed else "pinned")
    data = data.subset(config.model.modalities)
    data.require_inputs(config.model.modalities, ("train", "validation"))
    settings = run_settings(config, data, run)
    folder = RunFolder(open_storage(root), settings.run)
    folder.claim(settings, resume=resume)
    reused = folder.is_finished
    passed = _Passed(tracker, progress)
    if tracker is not None:
        tracker.set_tags(_tags(settings, folder))
    if reused:
        folder.tidy()
    else:
        run_workers(settings, folder, data, passed)
    result = _finished(folder, reused=reused)
    if tracker is not None:
        passed.what_is_missing(result.history)
        with tempfile.TemporaryDirectory(prefix="isoformer-artifacts-") as local:
            for name in ("config.yaml", "metrics.jsonl", "run.json"):
                tracker.log_artifact(str(folder.storage.download(folder.prefix + name, Path(local, name))))
    return result


def _finished(folder: RunFolder, *, reused: bool) -> TrainResult:
    summary = folder.summary()
    own = ("fingerprint", "best_epoch", "epochs", "stopped_by", "seconds", "parameters", "parameter_counts")
    history = folder.history()
    return TrainResult(
        run=folder.run,
        uri=folder.uri,
        best=history[summary["best_epoch"]],
        history=history,
        reused=reused,
        **{name: summary[name] for name in own},
    )


class _Passed:
    """Hands epochs on as they come, and at the end those that a kill has cost: a worker or a driver may die
    after an epoch's checkpoint and before anybody is told. The tracker drops what it has.
    """

    def __init__(self, tracker: RunTracker | None, progress: Progress | None) -> None:
        self._tracker, self._progress = tracker, progress
        self._epochs: set[int] = set()

    def __call__(self, metrics: dict[str, float]) -> None:
        if "step" not in metrics:
            self._track(metrics)
        if self._progress is not None:
            self._progress(metrics)

    def what_is_missing(self, history: Sequence[dict[str, float]]) -> None:
        for metrics in history:
            if int(metrics["epoch"]) not in self._epochs:
                self._track(metrics)

    def _track(self, metrics: dict[str, float]) -> None:
        epoch = int(metrics["epoch"])
        self._epochs.add(epoch)
        if self._tracker is not None:
            finite = {name: value for name, value in metrics.items() if name != "epoch" and value == value}
            self._tracker.log_metrics(finite, epoch)


def _tags(settings: RunSettings, folder: RunFolder) -> dict[str, str]:
    return {
        "run_folder": folder.uri,
        "run_fingerprint": settings.fingerprint,
        "data_fingerprint": settings.data_fingerprint,
        "label_provenance": settings.label_provenance,
        **{f"encoder_key.{modality}": key for modality, key in settings.train.keys.items()},
        **{f"encoder_trained.{modality}": trained for modality, trained in settings.encoder_trained.items()},
    }
