"""One trial: `fit` on the shared data, reporting each epoch to Ray Tune. Nothing is tracked from in here.

A trial leaves a checkpoint on the study's storage every so many seconds, and goes on from the one that it
finds there: its worker, its node and its driver may be killed. One whose training asks for several workers
runs them through Ray Train, which does the same in a run folder of the trial's own.
"""

from __future__ import annotations

import json
import math
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from isoformer.config import build
from isoformer.errors import InputError, StorageError
from isoformer.storage import Storage, full_disk, open_storage
from isoformer.sweep.data import SharedData
from isoformer.sweep.population import MUTABLE

if TYPE_CHECKING:
    from isoformer.model import IsoFormer
    from isoformer.training.config import TrainConfig
    from isoformer.training.data import PinnedDataset

Send = Callable[[dict[str, Any]], None]
REPORTED: Final = ("train_loss", "val_loss", "val_r2", "val_spearman")
REPORT_FILE: Final = "report.json"
MUTABLE_STATE: Final = ("train.epochs", *dict.fromkeys(f"train.{path.split('.')[0]}" for path in MUTABLE))
"""What a checkpoint of a parent may have been made with in another way."""


@dataclass(frozen=True)
class TrialPlace:
    """Where trials keep what a kill must not cost: `<root>/studies/<study>/`, and how often. `keeps_models`:
    what a trial ended with is kept, too, for others to go on from.
    """

    root: str
    study: str
    checkpoint_seconds: float
    keeps_models: bool = False

    def checkpoint_key(self, number: int) -> str:
        """The object with a trial's newest checkpoint."""
        return f"studies/{self.study}/checkpoints/{number:05d}.tar"

    def model_key(self, number: int) -> str:
        """The object with the checkpoint that a trial ended with."""
        return f"studies/{self.study}/models/{number:05d}.tar"

    @property
    def runs_root(self) -> str:
        """The root of the run folders of trials with several workers."""
        return f"{self.root.rstrip('/')}/studies/{self.study}/trials"


def run_trial(config: dict[str, Any], shared: Any) -> None:
    """What Ray Tune calls. `config`: train (the resolved configuration), metric, number and place."""
    from ray import tune

    send: Send = tune.report
    search(
        config["train"],
        shared,
        metric=config["metric"],
        send=send,
        place=config["place"],
        number=config["number"],
        parent=config["parent"],
    )


def search(
    train: Mapping[str, Any],
    shared: SharedData,
    *,
    metric: str,
    send: Send,
    place: TrialPlace | None = None,
    number: int = 0,
    parent: int | None = None,
) -> None:
    """Fit, and send one result an epoch and a last one with `finished`; an error is a result, too.

    A storage that fails is told as `storage_error`, and ends no trial. `score` is the validation score of the
    epoch that the fit would keep now: what its model would have.
    Without a `place` no checkpoints are kept. A trial with a `parent` goes on from the model that one ended
    with.
    """
    from isoformer.training.config import TrainConfig

    keeper = _Keeper(place, number, parent) if place is not None else None
    reporter = _Reporter(metric, send, keeper)
    try:
        settings = build(TrainConfig, train)
        reporter.monitor = settings.monitor
        data = shared.dataset({m: settings.keys[m] for m in settings.model.modalities if m in settings.keys})
        fitted = _on_workers if settings.workers > 1 and place is not None else _here
        model, best, parameters = fitted(settings, data, reporter, place, number)
        training_seconds = reporter.seconds - reporter.reporting_seconds
        tissues = _tissue_scores(model, data)
    except Exception as error:  # a failing trial is reported with its error and does not end the sweep
        storage_error = error if isinstance(error, StorageError) else full_disk(error)
        problem = {"error": f"{type(error).__name__}: {error}"[:500]}
        if storage_error is not None:  # no fault of the trial's: it goes on from its checkpoint
            problem = {"storage_error": str(storage_error)[:500]}
        send({**reporter.last, "finished": True, **problem})
        return
    last = {
        "score": best[metric],
        "finished": True,
        "seconds": reporter.seconds,
        "training_seconds": training_seconds,
        "parameters": parameters,
        "tissues": json.dumps(tissues),
    }
    send({**reporter.last, **last})


def _here(
    settings: TrainConfig, data: PinnedDataset, reporter: _Reporter, place: TrialPlace | None, number: int
) -> tuple[IsoFormer, dict[str, float], int]:
    """The fit in this process: the model, its epoch's metrics, its trained parameters."""
    from isoformer.training.loop import fit

    with tempfile.TemporaryDirectory(prefix="isoformer-trial-") as folder:
        newest = reporter.restore(Path(folder))
        inherited = MUTABLE_STATE if reporter.is_child else ()
        result = fit(settings, data, report=reporter, resume_from=newest, may_differ=inherited)
        reporter.keep_model()
    return result.model, result.best, result.parameters["all_trained"]


def _on_workers(
    settings: TrainConfig, data: PinnedDataset, reporter: _Reporter, place: TrialPlace | None, number: int
) -> tuple[IsoFormer, dict[str, float], int]:
    """The fit on Ray Train, in a run folder that goes when the trial has ended."""
    from isoformer.training.runs import RunFolder
    from isoformer.training.train import train

    assert place is not None
    folder = RunFolder(open_storage(place.runs_root), f"{number:05d}")
    result = train(
        settings,
        place.runs_root,
        run=folder.run,
        resume=True,
        data=data,
        progress=lambda metrics: reporter(metrics, None),
    )
    model = folder.model()
    folder.delete("")
    return model, result.best, result.parameter_counts["all_trained"]


def _tissue_scores(model: IsoFormer, data: PinnedDataset) -> dict[str, float]:
    """R² on the validation genes by tissue; where it is defined."""
    from isoformer.metrics import regression_metrics
    from isoformer.training.loop import predict

    rows = data.rows("validation")
    predicted_VK = predict(model, data.subset(model.config.modalities), rows)
    scores = regression_metrics(data.targets[rows], predicted_VK, data.target_mask[rows]).per_tissue["r2"]
    named = zip(data.target_names, scores, strict=True)
    return {name: round(float(score), 6) for name, score in named if math.isfinite(score)}


class _Reporter:
    """`fit`'s report callback: knows the epoch that is kept, sends one result an epoch, keeps checkpoints."""

    monitor = "val_loss"

    def __init__(self, metric: str, send: Send, keeper: _Keeper | None) -> None:
        self.last: dict[str, Any] = {
            "epoch": -1, "score": -math.inf, "finished": False, "error": "", "seconds": 0.0,
        }  # fmt: skip
        self._best = -math.inf
        self._metric = metric
        self._send = send
        self._keeper = keeper
        self._started = time.perf_counter()
        self._seconds_before = 0.0
        self._write: Callable[[Path], None] | None = None
        self.reporting_seconds = 0.0
        """Of `seconds`: spent on checkpoints, and waiting for the driver to take results."""

    @property
    def seconds(self) -> float:
        """Of the trial, with what earlier workers did on it up to the checkpoint."""
        return self._seconds_before + time.perf_counter() - self._started

    def __call__(self, metrics: dict[str, float], checkpoint: Callable[[Path], None] | None) -> None:
        if self._metric not in metrics:  # a checkpoint within an epoch
            return
        began = time.perf_counter()
        watched = metrics[self.monitor] * (-1 if self.monitor == "val_loss" else 1)
        is_kept = watched > self._best
        self._best = watched if is_kept else self._best
        self.last = {
            **self.last,
            "epoch": int(metrics["epoch"]),
            "score": metrics[self._metric] if is_kept else self.last["score"],
            "seconds": self.seconds,
            **{name: metrics[name] for name in REPORTED if name in metrics},
        }
        self._write = checkpoint
        if self._keeper is not None and checkpoint is not None:
            self._keeper.keep(checkpoint, self._state)
        self._send(self.last)
        self.reporting_seconds += time.perf_counter() - began

    @property
    def _state(self) -> dict[str, Any]:
        return {"last": self.last, "best": self._best}

    @property
    def is_child(self) -> bool:
        """Whether the trial goes on from another's model."""
        return self._keeper is not None and self._keeper.parent is not None

    def restore(self, folder: Path) -> Path | None:
        """Unpack the newest checkpoint into `folder`, if there is one, and go on counting from it; else the
        model that a parent ended with, counting anew.

        The checkpoint's epoch is sent again: a kill may have come after it and before the result.
        """
        state = self._keeper.restore(folder) if self._keeper is not None else None
        if state is None:
            return None
        self.last, self._best = {**self.last, **state["last"]}, state["best"]
        if state["is_own"]:
            self._seconds_before = self.last["seconds"]
        self._send({**self.last, "seconds": self.seconds})
        return folder

    def keep_model(self) -> None:
        """Keep what the trial ended with, where others may go on from it."""
        if self._keeper is not None and self._write is not None:
            self._keeper.keep_model(self._write, self._state)


class _Keeper:
    """A trial's checkpoint on the storage: one object, whole or not there."""

    def __init__(self, place: TrialPlace, number: int, parent: int | None) -> None:
        self._storage: Storage = open_storage(place.root)
        self._key = place.checkpoint_key(number)
        self._model_key = place.model_key(number) if place.keeps_models else None
        self._parent_key = None if parent is None else place.model_key(parent)
        self.parent = parent
        self._every_seconds = place.checkpoint_seconds
        self._kept = time.perf_counter()

    def keep(self, write: Callable[[Path], None], state: Mapping[str, Any]) -> None:
        """Replace the checkpoint where it is old enough."""
        if time.perf_counter() - self._kept < self._every_seconds:
            return
        self._put(write, state, self._key)
        self._kept = time.perf_counter()

    def keep_model(self, write: Callable[[Path], None], state: Mapping[str, Any]) -> None:
        """Put what the trial ended with, where the place keeps models."""
        if self._model_key is not None:
            self._put(write, state, self._model_key)

    def _put(self, write: Callable[[Path], None], state: Mapping[str, Any], key: str) -> None:
        with tempfile.TemporaryDirectory(prefix="isoformer-trial-") as work:
            folder, packed = Path(work, "checkpoint"), Path(work, "checkpoint.tar")
            write(folder)
            (folder / REPORT_FILE).write_text(json.dumps(state), encoding="utf-8")
            with tarfile.open(packed, "w") as archive:
                archive.add(folder, arcname=".")
            self._storage.put_file(packed, key)

    def restore(self, folder: Path) -> dict[str, Any] | None:
        """Unpack the own checkpoint or else the parent's into `folder`; what the report knew then, or None
        where there is neither.
        """
        is_own = self._storage.exists(self._key)
        key = self._key if is_own else self._parent_key
        if key is None:
            return None
        with tempfile.TemporaryDirectory(prefix="isoformer-trial-") as work:
            packed = self._storage.download(key, Path(work, "checkpoint.tar"))
            unpack_checkpoint(packed, folder, f"{self._storage.uri}/{key}")
        return {**json.loads((folder / REPORT_FILE).read_text(encoding="utf-8")), "is_own": is_own}


def unpack_checkpoint(packed: Path, folder: Path, uri: str) -> None:
    """Plain files, all of them inside `folder`. InputError for an archive of anything else."""
    try:
        with tarfile.open(packed) as archive:
            archive.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"not a trial's checkpoint ({error})", file=uri) from None
    if not (folder / REPORT_FILE).is_file():
        raise InputError(f"not a trial's checkpoint: it has no {REPORT_FILE}", file=uri)
