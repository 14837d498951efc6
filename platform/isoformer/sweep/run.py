"""`sweep`: check the space, load the data once, run the trials, write down what was found.

    <root>/studies/<study>/trials.json   every trial, the importances, what was searched
                           best.yaml     the best trial's training configuration, ready for `isoformer train`

A sweep sees the train and validation splits only. It can be killed at any instant; `resume=True` goes on.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from isoformer.config import to_yaml
from isoformer.errors import IsoformerError
from isoformer.schema import Modality
from isoformer.sweep.config import SweepConfig
from isoformer.sweep.control import Control
from isoformer.sweep.place import StudyPlace, study_place
from isoformer.sweep.results import Status, SweepResult, ranked
from isoformer.sweep.sampling import LAG_PER_SLOT, Drawing
from isoformer.sweep.searched import Searched, decided, made_from
from isoformer.sweep.stopping import StoppingRule
from isoformer.sweep.study import Study, TrialRow, importances, open_study
from isoformer.sweep.supply import MissingRun, Opening, Supply
from isoformer.sweep.trial import TrialPlace
from isoformer.sweep.warm_start import earlier_trials
from isoformer.tracking import Tracker, TrackingConfig, local_path, log_dataset
from isoformer.tracking.tracker import RunStatus

if TYPE_CHECKING:
    from isoformer.storage import Storage
    from isoformer.sweep.data import SharedData
    from isoformer.sweep.search import Progress, StudySearcher
    from isoformer.training.config import TrainConfig


def sweep(
    config: SweepConfig,
    base: TrainConfig,
    root: str,
    *,
    tracking: TrackingConfig | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    data: SharedData | None = None,
    supply: Supply | None = None,
) -> SweepResult:
    """Search around `base` until a budget is used up. Ray must be connected. `supply` makes embeddings that
    are listed and not there, when a trial asks for them.

    ConfigError where the space does not fit `base` or a trial asks for more than the cluster has;
    StorageError where the study exists (and `resume` is false) or another process works on it;
    FingerprintError where it was made from other data or another space; IsoformerError where no trial came to
    its end.
    """
    # All imports before the tracker's thread begins its own: two threads can meet a half-imported module.
    from isoformer.storage import open_storage
    from isoformer.sweep.data import load_shared
    from isoformer.sweep.tuning import concurrent_trials
    from isoformer.training.joined_tokens import with_located_weights

    storage = open_storage(root)
    searched = decided(config, base.edited(model=with_located_weights(base.model, storage)))
    concurrent = concurrent_trials(config, base.workers)
    tracking = (tracking or TrackingConfig()).for_root(root)
    with study_place(storage, root, config, tracking, resume=resume) as place, Tracker(tracking) as tracker:
        control = Control(storage, config.study)
        control.begin({"host": socket.gethostname(), "pid": os.getpid(), "database": place.shown_url})
        missing = supply.missing() if supply is not None else []
        shared = data or load_shared(root, _there(searched.config, missing), base.model.encoders)
        study = open_study(
            place.url,
            config.study,
            searched.config,
            made_from=made_from(searched, shared),
            require_held=place.require_held,
        )
        run = _parent_run(study, searched, shared, tracker, root)
        drawing = _drawing(study, searched, storage, tracking, concurrent)
        opening = _opening(study, searched.config, missing)
        searcher = _searcher(study, searched, drawing, control, root=root, run=run, opening=opening)

        def ended(row: TrialRow) -> None:
            storage.delete(searcher.place.checkpoint_key(row.number))
            place.keep_copy()
            if progress is not None:
                progress(row)

        try:
            with tracker.system_metrics(run):
                _run_all(searcher, shared, supply, tracker, ended=ended, concurrent=concurrent)
        except BaseException:
            tracker.end_run(run, status="KILLED")
            raise
        result = _result(searcher, place, shared)
        _write(result, storage)
        _close_parent(result, run, tracker)
    _require_one_finished(result)
    return result


def _run_all(
    searcher: StudySearcher,
    shared: SharedData,
    supply: Supply | None,
    tracker: Tracker,
    *,
    ended: Progress,
    concurrent: int,
) -> None:
    """Run trials until there are no more; in between, make embeddings that one was drawn to use, and go on
    with those whose workers died when Ray Tune had no more to start.
    """
    from isoformer.sweep.data import load_shared
    from isoformer.sweep.track_trials import TrackTrials
    from isoformer.sweep.tuning import run_trials

    config, root = searcher.config, searcher.place.root
    while (left := searcher.trial_limit - searcher.study.done) > 0:
        callback = TrackTrials(searcher, tracker, shared=shared, ended=ended)
        run_trials(searcher, callback, shared, trials=left, concurrent=concurrent)
        if searcher.control.request == "cancel":
            searcher.cancel_rest()
        if searcher.wanted and supply is not None:
            searcher.supplied(supply.make(searcher.wanted))
            shared = load_shared(root, _there(config, supply.missing()), searcher.base.model.encoders)
        elif not searcher.has_interrupted:
            return


def _searcher(
    study: Study,
    searched: Searched,
    drawing: Drawing,
    control: Control,
    *,
    root: str,
    run: str,
    opening: Opening | None,
) -> StudySearcher:
    from isoformer.sweep.search import StudySearcher

    config, base = searched.config, searched.base
    place = TrialPlace(
        str(local_path(root) or root),  # a trial's process has a working directory of its own
        config.study,
        config.checkpoint_seconds,
        keeps_models=config.scheduler == "pbt",
    )
    return StudySearcher(
        study=study,
        drawing=drawing,
        rule=StoppingRule.of(config, base.epochs, is_stoppable=base.workers == 1),
        control=control,
        config=config,
        space=searched.space,
        base=base,
        place=place,
        parent_run=run,
        opening=opening,
    )


def _there(config: SweepConfig, missing: Sequence[MissingRun]) -> dict[Modality, tuple[str, ...]]:
    """The keys that can be read."""
    absent = {key for run in missing for key in run.keys}
    return {m: tuple(key for key in listed if key not in absent) for m, listed in config.keys.items()}


def _opening(study: Study, config: SweepConfig, missing: Sequence[MissingRun]) -> Opening | None:
    """When what is missing may be made: as was decided when the study was begun."""
    if not missing:
        return None
    opening = Opening.of(missing, config.keys, trials=config.trials, device_hours=config.device_hours)
    decided = {**opening.opens_at, **study.attributes.get("opens_at", {})}
    study.set_attribute("opens_at", decided)
    kept = {key: decided[key] for key in opening.opens_at}
    return Opening(kept, opening.device_seconds)


def _drawing(
    study: Study, searched: Searched, storage: Storage, tracking: TrackingConfig, concurrent: int
) -> Drawing:
    """With the lag and the warm start that the study was begun with."""
    config = searched.config
    lag = study.attributes.get("lag")
    if lag is None:
        lag = LAG_PER_SLOT * concurrent if config.repeatable else 0
        study.set_attribute("lag", lag)
    warm = earlier_trials(study, config, searched.space, storage, tracking)
    return Drawing(
        searched.space,
        config,
        lag=lag,
        variants=searched.variants,
        earlier=warm.history,
        queued=warm.queued,
    )


def _parent_run(study: Study, searched: Searched, shared: SharedData, tracker: Tracker, root: str) -> str:
    config = searched.config
    before = study.attributes.get("run")
    run = before or uuid.uuid4().hex
    study.set_attribute("run", run)
    tags = {
        "kind": "sweep",
        "transcripts_fingerprint": shared.table.transcripts_fingerprint,
        "label_provenance": shared.table.label_provenance,
        **{f"encoder_key.{m}": ", ".join(listed) for m, listed in config.keys.items()},
    }
    params = {name: str(getattr(config, name)) for name in ("study", "trials", "metric", "sampler", "seed")}
    tracker.start_run(f"sweep {config.study}", key=run, tags=tags, params=params, is_new=before is None)
    log_dataset(tracker, run, root, context="search")
    tracker.log_text(run, to_yaml(config), "config.yaml")
    tracker.log_text(run, to_yaml(searched.base), "base.yaml")
    return run


def _result(searcher: StudySearcher, place: StudyPlace, shared: SharedData) -> SweepResult:
    study, config = searcher.study, searcher.config
    rows = study.rows()
    best_first = ranked(rows)[: max(1, config.final.top)]
    configs = {row.number: searcher.config_of(row.params) for row in best_first}
    best = best_first[0] if best_first else None
    names = [config.metric] + ([config.cost] if config.cost else [])
    return SweepResult(
        study=config.study,
        metric=config.metric,
        folder=str(place.folder),
        trials=rows,
        best=None if best is None else configs[best.number],
        best_trial=best,
        configs=configs,
        importances=importances(study),
        objectives=tuple(zip(names, config.directions, strict=True)),
        status=_status(searcher),
        seconds=searcher.seconds,
        space=searcher.space.model_dump(mode="json"),
        about={
            "budget": {name: getattr(config, name) for name in ("trials", "hours", "device_hours")},
            "budget_used": searcher.budget_used()
            or ("trials" if study.done >= searcher.trial_limit else None),
            "variants": searcher.drawing.variants,
            "sampler": config.sampler,
            "scheduler": searcher.rule.scheduler,
            "seed": config.seed,
            "repeatable": config.repeatable,
            "redrawn": searcher.redrawn,
            "run": searcher.parent_run,
            "storage": place.shown_url,
            "dataset": {
                "fingerprint": shared.table.transcripts_fingerprint,
                "label_provenance": shared.table.label_provenance,
                "transcripts": len(shared.table),
            },
        },
    )


def _status(searcher: StudySearcher) -> Status:
    ends: dict[str | None, Status] = {"pause": "paused", "stop": "stopped", "cancel": "cancelled"}
    return ends.get(searcher.control.request, "finished")


def _write(result: SweepResult, storage: Storage) -> None:
    prefix = f"studies/{result.study}"
    if result.status == "finished":
        storage.delete_folder(f"{prefix}/models/")
        storage.delete_folder(f"{prefix}/checkpoints/")
    storage.write_bytes(f"{prefix}/trials.json", json.dumps(result.to_json(), indent=1).encode())
    if result.best is not None:
        storage.write_bytes(f"{prefix}/best.yaml", to_yaml(result.best).encode())


def _require_one_finished(result: SweepResult) -> None:
    if result.best is None and result.status == "finished":
        failed = next((row for row in result.trials if row.error), None)
        why = f"; trial {failed.number}: {failed.error}" if failed else ""
        raise IsoformerError(
            f"sweep {result.study}: none of {len(result.trials)} trials came to its end{why}"
        )


def _close_parent(result: SweepResult, run: str, tracker: Tracker) -> None:
    counts = Counter(row.state for row in result.trials)
    metrics = {f"trials_{state}": float(count) for state, count in counts.items()}
    metrics |= {"device_hours": result.device_hours}
    if result.best_trial is not None and result.best_trial.value is not None:
        metrics["best_score"] = result.best_trial.value
    tracker.log_metrics(run, metrics)
    tracker.set_tags(run, {"sweep.status": result.status})
    tracker.log_text(run, json.dumps(result.to_json(), indent=1), "trials.json")
    if result.best is not None:
        tracker.log_text(run, to_yaml(result.best), "best.yaml")
    status: RunStatus = "FAILED" if result.best is None else "FINISHED"
    tracker.end_run(run, status="KILLED" if result.status in ("paused", "cancelled") else status)
