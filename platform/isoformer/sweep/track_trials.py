"""The callback of a sweep's Ray Tune run: a child run a trial in the tracker; ends told to who shows them.

It lives in the driver and closes trials in the study, since Ray Tune tells it of every end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.tune.callback import Callback

from isoformer.config import to_yaml
from isoformer.errors import StorageError
from isoformer.sweep import counters
from isoformer.sweep.data import SharedData
from isoformer.sweep.search import End, Progress, StudySearcher
from isoformer.sweep.space import is_score
from isoformer.sweep.study import TrialRow
from isoformer.sweep.trial import REPORTED
from isoformer.tracking import Tracker, dataset_tags
from isoformer.tracking.tracker import RunStatus

if TYPE_CHECKING:
    from isoformer.training.config import TrainConfig


class TrackTrials(Callback):
    """One child run a trial, logged in the driver, and progress for the terminal.

    A trial's scores go to the tracker's journal first and to the study then: one that is resumed sends an
    epoch twice at most, which the tracker knows how to take.
    """

    def __init__(
        self,
        searcher: StudySearcher,
        tracker: Tracker,
        *,
        shared: SharedData,
        ended: Progress | None = None,
    ) -> None:
        self.searcher = searcher
        self.tracker = tracker
        self.shared = shared
        self.ended = ended

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as with the searcher."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        live = self.searcher.live[trial.trial_id]
        counters.running(self.searcher)
        params = {name: str(value) for name, value in live.trial.params.items()}
        self.tracker.start_run(
            f"trial-{live.trial.number:03d}",
            key=live.trial.user_attrs["run"],
            parent=self.searcher.parent_run,
            tags=self._tags(live.config),
            params=params,
            is_new=not live.is_resumed,
        )
        self.tracker.log_text(live.trial.user_attrs["run"], to_yaml(live.config), "config.yaml")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        live = self.searcher.live[trial.trial_id]
        epoch = int(result["epoch"])
        wanted = {name: result[name] for name in (*REPORTED, "score") if is_score(result.get(name))}
        if wanted and not result.get("finished") and epoch not in live.trial.intermediate_values:
            self.tracker.log_metrics(live.trial.user_attrs["run"], wanted, step=epoch)
            counters.reported(self.searcher)
        self.searcher.keep(trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._close(trial, died=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._close(trial, died=True)

    def _tags(self, config: TrainConfig) -> dict[str, str]:
        keys = {
            m: config.keys[m]
            for m in config.model.modalities
            if (m, config.keys.get(m)) in self.shared.states
        }
        data = self.shared.dataset(keys)
        return dataset_tags(data.fingerprint, keys, data.label_provenance)

    def _close(self, trial: Any, *, died: bool) -> None:
        result = trial.last_result if trial.last_result and "score" in trial.last_result else None
        storage_error = (result or {}).get("storage_error")
        if died or storage_error:
            counters.died(self.searcher)
            if self.searcher.take_back(trial.trial_id):
                return
        if storage_error:  # the trial stays open, for when the storage is back
            raise StorageError(storage_error)
        row, end = self.searcher.close(trial.trial_id, result, died=died, track=self._track_end)
        counters.running(self.searcher)
        if end != "pause":
            counters.ended(self.searcher, row)
            if self.ended is not None:
                self.ended(row)

    def _track_end(self, row: TrialRow, end: End | None) -> None:
        state = "paused" if end == "pause" else row.state
        tags = {"trial.state": state, **({"trial.error": row.error} if row.error else {})}
        if row.tissues:
            text = "tissue,r2\n" + "".join(f'"{name}",{score}\n' for name, score in row.tissues.items())
            self.tracker.log_text(row.run, text, "validation/per_tissue.csv")
        self.tracker.set_tags(row.run, tags)
        status: RunStatus = "FAILED" if row.state == "failed" else "FINISHED"
        self.tracker.end_run(row.run, status="KILLED" if end in ("pause", "cancel") else status)
