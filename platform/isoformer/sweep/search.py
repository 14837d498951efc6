"""The Ray Tune side of a sweep: a searcher that asks and tells the study, a callback that tracks the runs.

Both live in the driver. The study is told after every epoch, so it is right whenever the driver is killed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ray.tune.callback import Callback
from ray.tune.search import Searcher

from isoformer.config import to_yaml
from isoformer.sweep.data import SharedData
from isoformer.sweep.space import SearchSpace, is_score
from isoformer.sweep.study import TrialRow, trial_rows
from isoformer.sweep.trial import REPORTED
from isoformer.tracking import Tracker, dataset_tags

if TYPE_CHECKING:
    import optuna

    from isoformer.training.config import TrainConfig

Progress = Callable[[TrialRow], None]


class StudySearcher(Searcher):
    """Draws from the study, and tells it every result. `parent_run` is the sweep's own run key."""

    def __init__(
        self, study: optuna.Study, space: SearchSpace, base: TrainConfig, *, metric: str, parent_run: str
    ) -> None:
        super().__init__(metric="score", mode="max")
        self.study = study
        self.space = space
        self.base = base
        self.metric_name = metric
        self.parent_run = parent_run
        self.live: dict[str, optuna.Trial] = {}
        self.configs: dict[str, TrainConfig] = {}

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The configuration of a new trial."""
        trial = self.study.ask()
        values = self.space.draw(trial)
        config = self.space.applied(self.base, values)
        trial.set_user_attr("run", f"{self.parent_run}-{trial.number:05d}")
        self.live[trial_id], self.configs[trial_id] = trial, config
        return {"train": config.model_dump(mode="json"), "metric": self.metric_name, "number": trial.number}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An epoch's score, as it comes; the last result repeats the last epoch's."""
        self._report(self.live[trial_id], result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Close the trial: complete where `fit` came to its end, pruned where the scheduler stopped it."""
        from optuna.trial import TrialState

        trial = self.live.pop(trial_id, None)
        if trial is None:  # a trial that another path has closed already
            return
        problem = _problem(result, error)
        if result:  # the result that a scheduler stops at comes here, not to on_trial_result
            self._report(trial, result)
            trial.set_user_attr("seconds", result.get("seconds"))
        if problem:
            trial.set_user_attr("error", problem)
            self.study.tell(trial, state=TrialState.FAIL)
        elif result is not None and result.get("finished"):
            self.study.tell(trial, result["score"])
        else:
            self.study.tell(trial, state=TrialState.PRUNED)

    def _report(self, trial: optuna.Trial, result: Mapping[str, Any]) -> None:
        if is_score(result.get("score")) and not result.get("finished"):
            trial.report(result["score"], step=result["epoch"])

    def config_of(self, params: Mapping[str, Any]) -> TrainConfig:
        """The training configuration of a trial that the study holds."""
        from optuna.trial import FixedTrial

        return self.space.applied(self.base, self.space.draw(FixedTrial(dict(params))))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study is on disk already."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune pickles its searcher for a restore of its own, which is never used here."""
        return {}


class TrackTrials(Callback):
    """One child run a trial, logged in the driver, and progress for the terminal."""

    def __init__(
        self, searcher: StudySearcher, tracker: Tracker, *, shared: SharedData, progress: Progress | None
    ) -> None:
        self.searcher = searcher
        self.tracker = tracker
        self.shared = shared
        self.progress = progress
        self.runs: dict[str, tuple[str, int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as with the searcher."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        drawn = self.searcher.live[trial.trial_id]
        run, config = drawn.user_attrs["run"], self.searcher.configs[trial.trial_id]
        self.runs[trial.trial_id] = (run, drawn.number)
        tags = self._tags(config)
        params = {name: str(value) for name, value in drawn.params.items()}
        parent = self.searcher.parent_run
        self.tracker.start_run(f"trial-{drawn.number:03d}", key=run, parent=parent, tags=tags, params=params)
        self.tracker.log_text(run, to_yaml(config), "config.yaml")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        run, _ = self.runs[trial.trial_id]
        wanted = {name: result[name] for name in (*REPORTED, "score") if is_score(result.get(name))}
        if wanted:
            self.tracker.log_metrics(run, wanted, step=int(result["epoch"]))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._close(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._close(trial)

    def _tags(self, config: TrainConfig) -> dict[str, str]:
        keys = {
            m: config.keys[m] for m in config.model.modalities if (m, config.keys[m]) in self.shared.states
        }
        data = self.shared.dataset(keys)
        return dataset_tags(data.fingerprint, keys, data.label_provenance)

    def _close(self, trial: Any) -> None:
        run, number = self.runs.pop(trial.trial_id)
        row = trial_rows(self.searcher.study)[number]
        self.tracker.set_tags(
            run, {"trial.state": row.state, **({"trial.error": row.error} if row.error else {})}
        )
        self.tracker.end_run(run, status="FAILED" if row.state == "failed" else "FINISHED")
        if self.progress is not None:
            self.progress(row)


def _problem(result: Mapping[str, Any] | None, error: bool) -> str:
    if result and result.get("error"):
        return str(result["error"])
    if error:
        return "the trial's worker died (out of memory, or killed); its log is in Ray's session folder"
    if result and result.get("finished") and not math.isfinite(result["score"]):
        return "no validation score was defined in any epoch"
    return ""
