"""The Ray Tune side of a sweep: a searcher that draws and tells the study, a scheduler that asks what ends.

Both live in the driver and keep nothing that the study does not say: it is told after every epoch, so it is
right whenever the driver is killed.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from isoformer.sweep.config import SweepConfig
from isoformer.sweep.control import Control
from isoformer.sweep.sampling import Drawing, Drawn
from isoformer.sweep.space import SearchSpace, is_score
from isoformer.sweep.stopping import Peer, StoppingRule
from isoformer.sweep.study import Study, TrialRow, TrialState, row_of
from isoformer.sweep.supply import Opening
from isoformer.sweep.trial import TrialPlace

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from isoformer.training.config import TrainConfig

Progress = Callable[[TrialRow], None]
End = Literal["pruned", "pause", "cancel"]
Ended = Callable[[TrialRow, End | None], None]
CANCELLED: Final = "cancelled by request"
REDRAWS: Final = 20


@dataclass
class Live:
    """A trial that runs: the study's, its configuration, and why it is being ended, where it is."""

    trial: FrozenTrial
    config: TrainConfig
    is_resumed: bool = False
    end: End | None = None


@dataclass(eq=False)
class StudySearcher(Searcher):
    """Draws from the study, picks up what was left running, and tells the study how trials end.

    `parent_run` is the sweep's own run key; `session_began` the clock (`time.monotonic`) of this driver.
    """

    study: Study
    drawing: Drawing
    rule: StoppingRule
    control: Control
    config: SweepConfig
    space: SearchSpace
    base: TrainConfig
    place: TrialPlace
    parent_run: str
    opening: Opening | None = None
    session_began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        super().__init__(metric="score", mode="max")
        self.live: dict[str, Live] = {}
        self._interrupted = self.study.left_running
        self._seconds_before = self.study.attributes.get("seconds", 0.0)
        self._device_seconds: dict[int, float] = {}
        self._deaths: Counter[int] = Counter()
        self.missing: set[str] = set(self.opening.opens_at) if self.opening else set()
        self.wanted: tuple[str, ...] = ()
        self.redrawn = 0

    def suggest(self, trial_id: str) -> Any:
        """The next trial's task; None where it must wait for others; FINISHED where there is no more."""
        if self.wanted or self.control.request is not None or self.budget_used() is not None:
            return Searcher.FINISHED
        is_resumed = bool(self._interrupted)
        if self._interrupted:
            trial = self._interrupted.pop(0)
            config = self.config_of(trial.params)
        elif len(self.study.trials) >= self.trial_limit:
            return Searcher.FINISHED
        elif not self.drawing.is_ready(self.study.trials):
            return None
        else:
            drawn, config = self._drawn()
            if self.wanted:
                return Searcher.FINISHED
            trial = self.study.begin(
                drawn.params,
                drawn.distributions,
                run_prefix=self.parent_run,
                sampler_state=drawn.sampler_state,
                parent=drawn.parent,
            )
        config = self._lasting(trial.number, config)
        self.live[trial_id] = Live(trial, config, is_resumed)
        return {
            "train": config.model_dump(mode="json"),
            "metric": self.config.metric,
            "number": trial.number,
            "place": self.place,
            "parent": trial.user_attrs.get("parent"),
        }

    def _lasting(self, number: int, config: TrainConfig) -> TrainConfig:
        """With the epochs that the trial's generation ends at, where there are generations."""
        population = self.drawing.population
        return config if population is None else config.edited(epochs=population.epochs_of(number))

    def _drawn(self) -> tuple[Drawn, TrainConfig]:
        """The next trial on embeddings that are there; sets `wanted` where it may have others made."""
        number, trials = len(self.study.trials), self.study.trials
        for attempt in range(REDRAWS):
            drawn = self.drawing.next(trials, attempt=attempt)
            config = self.space.applied(self.base, drawn.values)
            keys = {config.keys[m] for m in config.model.modalities if m in config.keys}
            lacking = tuple(sorted(keys & self.missing))
            if not lacking:
                return drawn, config
            assert self.opening is not None
            if self.opening.permits(lacking, number, self._device_seconds_left):
                self.wanted = lacking
                return drawn, config
            self.redrawn += 1
        drawn = self.drawing.next(trials, fixed=self._cached_choices())
        return drawn, self.space.applied(self.base, drawn.values)

    def _cached_choices(self) -> dict[str, Any]:
        """Of each parameter that chooses embeddings, the first choice that is there."""
        chosen = {}
        for name, parameter in self.space.root.items():
            if parameter.path.split(".")[0] == "keys":
                for label, choice in parameter.by_label.items():
                    asked = set(choice.values()) if isinstance(choice, dict) else {choice}
                    if not asked & self.missing:
                        chosen[name] = label
                        break
        return chosen

    @property
    def _device_seconds_left(self) -> float | None:
        limit = self.config.device_hours
        return None if limit is None else limit * 3600 - self._device_seconds_spent

    @property
    def _device_seconds_spent(self) -> float:
        embedding = float(self.study.attributes.get("embedding_device_seconds", 0.0))
        return self.study.device_hours * 3600 + sum(self._device_seconds.values()) + embedding

    def supplied(self, device_seconds: float) -> None:
        """What was wanted is there."""
        spent = float(self.study.attributes.get("embedding_device_seconds", 0.0)) + device_seconds
        self.study.set_attribute("embedding_device_seconds", spent)
        self.missing -= set(self.wanted)
        self.wanted = ()

    @property
    def trial_limit(self) -> int:
        """How many trials the study is to hold."""
        return min(self.config.trials, self.drawing.limit or self.config.trials)

    def budget_used(self) -> str | None:
        """Which budget is used up, if one is."""
        if self.config.hours is not None and self.seconds >= self.config.hours * 3600:
            return "hours"
        left = self._device_seconds_left
        return "device_hours" if left is not None and left <= 0 else None

    @property
    def seconds(self) -> float:
        """Wall seconds of all sessions of the study."""
        return self._seconds_before + time.monotonic() - self.session_began

    def decide(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Whether the trial ends here, at this result."""
        live = self.live[trial_id]
        self._device_seconds[live.trial.number] = self._of_devices(result)
        if result.get("finished") or not is_score(result.get("score")):
            return False
        if self.control.request in ("pause", "cancel"):
            live.end = self.control.request
        elif self.rule.scheduler != "none":
            curve = {**live.trial.intermediate_values, int(result["epoch"]): result["score"]}
            if self.rule.stops(live.trial.number, curve, self._peers(live.trial)):
                live.end = "pruned"
        return live.end is not None

    def keep(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Put an epoch's score into the study."""
        if is_score(result.get("score")) and not result.get("finished"):
            self.study.report(self.live[trial_id].trial, int(result["epoch"]), result["score"])

    def take_back(self, trial_id: str) -> bool:
        """A trial's worker died: give the trial out again, from its checkpoint; False where that has happened
        too often.
        """
        trial = self.live[trial_id].trial
        self._deaths[trial.number] += 1
        if self._deaths[trial.number] > self.config.max_failures:
            return False
        self.live.pop(trial_id)
        self._device_seconds.pop(trial.number, None)
        self._interrupted.append(trial)
        return True

    @property
    def has_interrupted(self) -> bool:
        """Whether there are trials to go on with, and nothing speaks against it."""
        return bool(self._interrupted) and self.control.request is None and self.budget_used() is None

    def cancel_rest(self) -> None:
        """Fail what is still open."""
        for trial in self.study.left_running:
            self.study.describe(trial, error=CANCELLED)
            self.study.end(trial, "failed")

    def close(
        self, trial_id: str, result: Mapping[str, Any] | None, *, died: bool, track: Ended | None = None
    ) -> tuple[TrialRow, End | None]:
        """End the trial in the study: complete where `fit` came to its end, pruned where the rule stopped it;
        one that is paused stays open.

        `track` is told before the study is: a driver that is killed in between ends the trial once more.
        """
        live = self.live.pop(trial_id)
        trial, result = live.trial, result or {}
        self._device_seconds.pop(trial.number, None)
        track = track or _untold
        if live.end == "pause":
            track(row_of(trial), live.end)
            return row_of(trial), live.end
        problem = CANCELLED if live.end == "cancel" else _problem(result, died)
        if result:
            device_seconds = self._of_devices(result)
            self.study.describe(trial, seconds=result.get("seconds"), device_seconds=device_seconds)
        state: TrialState = "failed" if problem else "pruned" if live.end == "pruned" else "complete"
        if problem:
            self.study.describe(trial, error=problem)
        elif state == "complete":
            described = {name: result[name] for name in ("training_seconds", "parameters", "tissues")}
            self.study.describe(trial, **described)
        track(replace(row_of(trial), state=state), live.end)
        self.study.end(trial, state, self._values(result) if state == "complete" else None)
        self.study.set_attribute("seconds", self.seconds)
        return row_of(trial), live.end

    def config_of(self, params: Mapping[str, Any]) -> TrainConfig:
        """The training configuration of a trial that the study holds."""
        from optuna.trial import FixedTrial

        return self.space.applied(self.base, self.space.draw(FixedTrial(dict(params))))

    def _peers(self, trial: FrozenTrial) -> list[Peer]:
        variant = trial.params.get(self.drawing.variants) if self.drawing.variants else None
        seen = self.drawing.visible(self.study.trials, trial.number, variant)
        return [
            Peer(other.number, other.intermediate_values, other.state.name == "COMPLETE") for other in seen
        ]

    def _values(self, result: Mapping[str, Any]) -> list[float]:
        costs = [] if self.config.cost is None else [float(result[self.config.cost])]
        return [float(result["score"]), *costs]

    def _of_devices(self, result: Mapping[str, Any]) -> float:
        share = (self.config.gpus or self.config.cpus) * self.base.workers
        return float(result.get("seconds") or 0.0) * share

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: the callback closes trials, since it is told of every end."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is in its database already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study is in its database already."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune pickles its searcher for a restore of its own, which is never used here."""
        return {}


class StudyScheduler(FIFOScheduler):
    """Trials in the order they are drawn; each ends where the searcher says."""

    def __init__(self, searcher: StudySearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return self.STOP if self._searcher.decide(trial.trial_id, result) else self.CONTINUE

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as with the searcher."""
        return {}


def _untold(_row: TrialRow, _end: End | None) -> None:
    pass


def _problem(result: Mapping[str, Any], died: bool) -> str:
    if result.get("error"):
        return str(result["error"])
    if died:
        return "the trial's workers died (out of memory, or killed); their logs are in Ray's session folder"
    if result.get("finished") and not math.isfinite(result["score"]):
        return "no validation score was defined in any epoch"
    return ""
