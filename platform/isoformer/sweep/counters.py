"""What a sweep tells Prometheus, from its driver: trials as they begin, report and end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isoformer.telemetry import count, observe, show

if TYPE_CHECKING:
    from isoformer.sweep.search import StudySearcher
    from isoformer.sweep.study import TrialRow


def running(searcher: StudySearcher) -> None:
    """Trials that run now, of those that the study is to hold."""
    study = searcher.config.study
    show("isoformer_sweep_trials_running", len(searcher.live), study=study)
    show("isoformer_sweep_trials_planned", searcher.trial_limit, study=study)


def slots(searcher: StudySearcher, concurrent: int) -> None:
    """Trials that may run at once; 0 when there are no more to start."""
    show("isoformer_sweep_slots", concurrent, study=searcher.config.study)


def reported(searcher: StudySearcher) -> None:
    """A trial has come to the end of an epoch."""
    count("isoformer_sweep_epochs_total", study=searcher.config.study)


def died(searcher: StudySearcher) -> None:
    """A trial's worker is gone."""
    count("isoformer_sweep_worker_deaths_total", study=searcher.config.study)


def ended(searcher: StudySearcher, row: TrialRow) -> None:
    """A trial is complete, pruned or failed."""
    config = searcher.config
    study = config.study
    count("isoformer_sweep_trials_total", study=study, state=row.state)
    count("isoformer_sweep_device_seconds_total", row.device_seconds or 0.0, study=study)
    count("isoformer_sweep_training_seconds_total", row.training_seconds or 0.0, study=study)
    if row.seconds is not None:
        observe("isoformer_sweep_trial_seconds", row.seconds, study=study, state=row.state)
    complete = [trial.values[0] for trial in searcher.study.trials if trial.state.name == "COMPLETE"]
    show("isoformer_sweep_best_score", max(complete, default=None), study=study, metric=config.metric)
