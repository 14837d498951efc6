"""`sweep`: check the space, load the data once, run the trials, write down what was found.

    <root>/studies/<study>/study.db      the Optuna study (for an s3:// root: a copy, put there at the end)
                           trials.json   every trial, the importances, what was searched
                           best.yaml     the best trial's training configuration, ready for `isoformer train`

A sweep sees the train and validation splits only. It can be killed at any instant; `resume=True` goes on.
"""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoformer.config import build, to_yaml
from isoformer.errors import ConfigError, IsoformerError, StorageError
from isoformer.schema import Modality
from isoformer.sweep.config import SweepConfig
from isoformer.sweep.space import SearchSpace, default_space, with_resolutions
from isoformer.sweep.study import (
    TrialRow,
    count_done,
    importances,
    open_study,
    queue_interrupted,
    require_new,
    trial_rows,
)
from isoformer.tracking import Tracker, TrackingConfig, local_path

if TYPE_CHECKING:
    import optuna

    from isoformer.storage import Storage
    from isoformer.sweep.data import SharedData
    from isoformer.sweep.search import Progress, StudySearcher
    from isoformer.training.config import TrainConfig


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found."""

    study: str
    metric: str
    folder: str
    trials: list[TrialRow]
    best: TrainConfig | None
    best_trial: TrialRow | None
    importances: dict[str, float]
    seconds: float = 0.0
    space: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As it stands in trials.json."""
        return {
            "study": self.study,
            "metric": self.metric,
            "direction": "maximize",
            "seconds": self.seconds,
            "best": self.best_trial.number if self.best_trial else None,
            "importances": self.importances,
            "space": self.space,
            "trials": [row.to_json() for row in self.trials],
        }


def sweep(
    config: SweepConfig,
    base: TrainConfig,
    root: str,
    *,
    tracking: TrackingConfig | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    data: SharedData | None = None,
) -> SweepResult:
    """Search around `base` until the study holds `config.trials` finished trials. Ray must be connected.

    ConfigError where the space does not fit `base` or a trial asks for more than any node has; StorageError
    where the study exists (and `resume` is false) or another process works on it; FingerprintError where it
    was made from other data or another space; IsoformerError where no trial came to its end.
    """
    # All imports before the tracker's thread begins its own: two threads can meet a half-imported module.
    from isoformer.storage import open_storage
    from isoformer.sweep.data import load_shared
    from isoformer.sweep.search import StudySearcher, TrackTrials
    from isoformer.sweep.tuning import Budget, concurrent_trials, run_trials

    started = time.perf_counter()
    if base.model.encoders:
        raise ConfigError("a sweep searches over cached embeddings; leave train.model.encoders out")
    keys = _keys(config, base)
    base = base.edited(keys={m: listed[0] for m, listed in keys.items()}, epochs=config.epochs or base.epochs)
    space = _space(config, keys)
    space.check(base)
    concurrent = concurrent_trials(config)
    storage = open_storage(root)
    tracking = (tracking or TrackingConfig()).for_root(root)
    with (
        _study_folder(storage, root, config.study, tracking, resume=resume) as folder,
        Tracker(tracking) as tracker,
    ):
        shared = data or load_shared(root, keys)
        study = _study(folder, config, space, shared)
        _close_interrupted(study, tracker)
        run = _parent_run(study, config, shared, tracker)
        searcher = StudySearcher(study, space, base, metric=config.metric, parent_run=run)
        callback = TrackTrials(searcher, tracker, shared=shared, progress=progress)
        left = config.trials - count_done(study)
        try:
            if left > 0:
                run_trials(searcher, callback, config, shared, Budget(left, concurrent))
        except BaseException:
            tracker.end_run(run, status="KILLED")
            raise
        result = replace(_result(study, searcher, config, folder), seconds=_seconds(study, started))
        _write(result, storage, local=local_path(root) is not None)
        _close_parent(result, run, tracker)
    _require_one_finished(result)
    return result


def _keys(config: SweepConfig, base: TrainConfig) -> dict[Modality, tuple[str, ...]]:
    keys = config.keys or {modality: (key,) for modality, key in base.keys.items()}
    if not keys or not all(keys.values()):
        raise ConfigError(
            "sweep.keys names no embedding dataset: run `isoformer embed`, or list keys a modality"
        )
    missing = [modality for modality in base.model.modalities if modality not in keys]
    if missing:
        raise ConfigError(
            f"train.model.modalities has {', '.join(missing)}; sweep.keys only {', '.join(keys)}"
        )
    return keys


def _space(config: SweepConfig, keys: Mapping[Modality, tuple[str, ...]]) -> SearchSpace:
    if config.space is None:
        return default_space(keys)
    if any(parameter.path.split(".")[0] == "keys" for parameter in config.space.root.values()):
        return config.space
    return build(SearchSpace, with_resolutions(config.space.model_dump(), keys))


@contextmanager
def _study_folder(
    storage: Storage, root: str, name: str, tracking: TrackingConfig, *, resume: bool
) -> Iterator[Path]:
    """The local folder with the study, held by this process alone."""
    from filelock import FileLock, Timeout

    local = local_path(root)
    folder = (local or tracking.local_folder) / "studies" / name
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StorageError(f"{folder}: another process works on this study") from None
    try:
        database = folder / "study.db"
        if local is None and not database.exists() and storage.exists(f"studies/{name}/study.db"):
            storage.download(f"studies/{name}/study.db", database)
        require_new(database, resume=resume)
        yield folder
    finally:
        lock.release()


def _study(folder: Path, config: SweepConfig, space: SearchSpace, shared: SharedData) -> optuna.Study:
    made_from = {
        "dataset": shared.table.transcripts_fingerprint,
        "keys": json.dumps(sorted(f"{modality}={key}" for modality, key in shared.states)),
        "space": json.dumps(space.model_dump(mode="json")),
        "metric": config.metric,
    }
    database = folder / "study.db"
    return open_study(database, config.study, seed=config.seed, sampler=config.sampler, made_from=made_from)


def _close_interrupted(study: optuna.Study, tracker: Tracker) -> int:
    interrupted = queue_interrupted(study)
    for row in interrupted:
        if row.run:
            tracker.set_tags(row.run, {"trial.state": "interrupted"})
            tracker.end_run(row.run, status="KILLED")
    return len(interrupted)


def _parent_run(study: optuna.Study, config: SweepConfig, shared: SharedData, tracker: Tracker) -> str:
    run = study.user_attrs.get("run") or uuid.uuid4().hex
    study.set_user_attr("run", run)
    tags = {
        "kind": "sweep",
        "transcripts_fingerprint": shared.table.transcripts_fingerprint,
        "label_provenance": shared.table.label_provenance,
        **{f"encoder_key.{m}": ", ".join(listed) for m, listed in config.keys.items()},
    }
    params = {name: str(getattr(config, name)) for name in ("study", "trials", "metric", "sampler", "seed")}
    tracker.start_run(f"sweep {config.study}", key=run, tags=tags, params=params)
    tracker.log_text(run, to_yaml(config), "config.yaml")
    return run


def _result(study: optuna.Study, searcher: StudySearcher, config: SweepConfig, folder: Path) -> SweepResult:
    rows = trial_rows(study)
    complete = [row for row in rows if row.state == "complete" and row.value is not None]
    best = max(complete, key=lambda row: row.value or 0.0, default=None)
    return SweepResult(
        study=config.study,
        metric=config.metric,
        folder=str(folder),
        trials=rows,
        best=None if best is None else searcher.config_of(best.params),
        best_trial=best,
        importances=importances(study),
        space=searcher.space.model_dump(mode="json"),
    )


def _seconds(study: optuna.Study, started: float) -> float:
    """Of this session and the finished ones before it."""
    seconds = study.user_attrs.get("seconds", 0.0) + time.perf_counter() - started
    study.set_user_attr("seconds", seconds)
    return seconds


def _write(result: SweepResult, storage: Storage, *, local: bool) -> None:
    prefix = f"studies/{result.study}"
    storage.write_bytes(f"{prefix}/trials.json", json.dumps(result.to_json(), indent=1).encode())
    if result.best is not None:
        storage.write_bytes(f"{prefix}/best.yaml", to_yaml(result.best).encode())
    if not local:
        storage.put_file(Path(result.folder) / "study.db", f"{prefix}/study.db")


def _require_one_finished(result: SweepResult) -> None:
    if result.best is None:
        failed = next((row for row in result.trials if row.error), None)
        why = f"; trial {failed.number}: {failed.error}" if failed else ""
        raise IsoformerError(
            f"sweep {result.study}: none of {len(result.trials)} trials came to its end{why}"
        )


def _close_parent(result: SweepResult, run: str, tracker: Tracker) -> None:
    counts = Counter(row.state for row in result.trials)
    metrics = {f"trials_{state}": float(count) for state, count in counts.items()}
    if result.best_trial is not None and result.best_trial.value is not None:
        metrics["best_score"] = result.best_trial.value
    tracker.log_metrics(run, metrics)
    tracker.log_text(run, json.dumps(result.to_json(), indent=1), "trials.json")
    if result.best is not None:
        tracker.log_text(run, to_yaml(result.best), "best.yaml")
    tracker.end_run(run, status="FINISHED" if result.best is not None else "FAILED")
