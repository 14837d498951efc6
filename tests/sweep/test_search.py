"""What the searcher gives out and when it stops giving, without a cluster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher

from isoformer.config import build
from isoformer.errors import StorageError
from isoformer.model import ModelConfig
from isoformer.storage import open_storage
from isoformer.sweep import SearchSpace, SweepConfig
from isoformer.sweep.control import Control, ask_for
from isoformer.sweep.sampling import Drawing
from isoformer.sweep.search import StudySearcher
from isoformer.sweep.stopping import StoppingRule
from isoformer.sweep.study import TrialRow, open_study
from isoformer.sweep.supply import MissingRun, Opening
from isoformer.sweep.track_trials import TrackTrials
from isoformer.sweep.trial import TrialPlace
from isoformer.tracking import Tracker, TrackingConfig
from isoformer.training.config import TrainConfig
from sweep.conftest import KEYS

BASE = TrainConfig(
    model=ModelConfig(modalities=("rna",), width=8, heads=1), keys={"rna": KEYS["rna"][0]}, epochs=9
)
SPACE = build(
    SearchSpace,
    {
        "learning_rate": {"path": "learning_rate", "low": 1e-4, "high": 1e-2, "log": True},
        "encoder_rna": {"path": "keys.rna", "choices": KEYS["rna"]},
    },
)


def searcher(root: Path, *, opening: Opening | None = None, **config: Any) -> StudySearcher:
    settings = SweepConfig(**{"sampler": "random", "trials": 8, **config})
    control = Control(open_storage(str(root)), settings.study)
    control.begin({})
    url = f"sqlite:///{root}/study.db"
    return StudySearcher(
        study=open_study(url, settings.study, settings, made_from={}),
        drawing=Drawing(SPACE, settings, lag=4),
        rule=StoppingRule.of(settings, BASE.epochs),
        control=control,
        config=settings,
        space=SPACE,
        base=BASE,
        place=TrialPlace(str(root), settings.study, 30.0),
        parent_run="parent",
        opening=opening,
    )


def epoch(number: int, score: float, seconds: float = 1.0) -> dict[str, Any]:
    return {"epoch": number, "score": score, "seconds": seconds, "finished": False, "error": ""}


def last(score: float, seconds: float = 10.0) -> dict[str, Any]:
    described = {"parameters": 5, "tissues": "{}", "training_seconds": seconds}
    return {**epoch(8, score, seconds), "finished": True, **described}


def end(found: StudySearcher, trial_id: str, result: dict[str, Any], *, died: bool = False) -> str:
    found.decide(trial_id, result)
    found.keep(trial_id, result)
    return found.close(trial_id, result, died=died)[0].state


def test_device_hours_are_counted_while_trials_run_and_when_they_have_ended(tmp_path: Path) -> None:
    found = searcher(tmp_path, device_hours=30 / 3600, cpus=2)
    for name in ("a", "b"):
        assert found.suggest(name)["number"] in (0, 1)
    found.decide("a", epoch(0, 0.1, seconds=10.0))
    assert found.budget_used() is None
    assert end(found, "a", last(0.1, seconds=12.0)) == "complete"
    assert found.budget_used() is None, "24 of 30"
    found.decide("b", epoch(0, 0.1, seconds=4.0))
    assert found.budget_used() == "device_hours" and found.suggest("c") == Searcher.FINISHED
    assert found.study.rows()[0].device_seconds == 24.0


def test_hours_are_of_all_sessions(tmp_path: Path) -> None:
    found = searcher(tmp_path, hours=1.0)
    assert found.suggest("a") != Searcher.FINISHED
    found.study.set_attribute("seconds", 3601.0)
    again = searcher(tmp_path, hours=1.0)
    assert again.budget_used() == "hours" and again.suggest("b") == Searcher.FINISHED


def test_what_was_left_running_comes_first_under_its_number(tmp_path: Path) -> None:
    found = searcher(tmp_path)
    first, second = found.suggest("a"), found.suggest("b")
    end(found, "b", last(0.5))
    again = searcher(tmp_path)
    assert again.suggest("c") == first and again.live["c"].is_resumed
    third = again.suggest("d")
    assert third["number"] == 2 and third["train"] != second["train"]


@pytest.mark.parametrize("request_", ["pause", "stop", "cancel"])
def test_a_request_ends_what_it_says(tmp_path: Path, request_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isoformer.sweep.control.LOOK_EVERY_SECONDS", 0.0)
    found = searcher(tmp_path)
    found.suggest("a")
    assert not found.decide("a", epoch(0, 0.2))
    ask_for(open_storage(str(tmp_path)), "sweep", request_)
    assert found.suggest("b") == Searcher.FINISHED
    assert found.decide("a", epoch(1, 0.3)) == (request_ != "stop")
    found.keep("a", epoch(1, 0.3))
    row, why = found.close("a", epoch(1, 0.3) if request_ != "stop" else last(0.3), died=False)
    states = {"pause": "running", "stop": "complete", "cancel": "failed"}
    assert row.state == states[request_] and why == (request_ if request_ != "stop" else None)
    assert row.error == ("cancelled by request" if request_ == "cancel" else "")


def test_errors_and_deaths_are_told_with_their_reason(tmp_path: Path) -> None:
    found = searcher(tmp_path)
    for name in ("a", "b", "c"):
        found.suggest(name)
    assert end(found, "a", {**last(0.0), "error": "ValueError: no"}) == "failed"
    assert found.close("b", None, died=True)[0].error.startswith("the trial's workers died")
    assert not found.has_interrupted
    assert end(found, "c", last(float("nan"))) == "failed"
    assert [row.error[:22] for row in found.study.rows()] == [
        "ValueError: no", "the trial's workers di", "no validation score wa",
    ]  # fmt: skip


def test_a_trial_waits_for_those_that_it_is_drawn_from(tmp_path: Path) -> None:
    found = searcher(tmp_path)
    for name in "abcd":
        assert found.suggest(name) is not None
    assert found.suggest("e")["number"] == 4
    assert found.suggest("f") is None, "trial 0 has not ended"
    end(found, "a", last(0.5))
    assert found.suggest("f")["number"] == 5


def test_embeddings_that_are_not_there_are_asked_for_when_it_is_time(tmp_path: Path) -> None:
    missing = [MissingRun("dear", (KEYS["rna"][1],), 100.0, 1)]
    opening = Opening.of(missing, KEYS, trials=8, device_hours=None)
    found = searcher(tmp_path, opening=opening, seed=1)
    assert opening.opens_at == {KEYS["rna"][1]: 2}
    given = []
    for name in "abcdefgh":
        task = found.suggest(name)
        if task == Searcher.FINISHED:
            break
        given.append(task["train"]["keys"]["rna"])
        end(found, name, last(0.1))
    assert set(given) == {KEYS["rna"][0]} and len(given) >= 2, "until then the cached ones"
    assert found.wanted == (KEYS["rna"][1],) and found.suggest("x") == Searcher.FINISHED
    before = len(found.study.trials)
    found.supplied(50.0)
    assert found.suggest("y")["train"]["keys"]["rna"] == KEYS["rna"][1]
    assert len(found.study.trials) == before + 1
    assert found.study.attributes["embedding_device_seconds"] == 50.0


def test_without_permission_a_cached_choice_is_taken(tmp_path: Path) -> None:
    missing = [MissingRun("dear", (KEYS["rna"][1],), 1e9, 1)]
    opening = Opening.of(missing, KEYS, trials=8, device_hours=1.0)
    found = searcher(tmp_path, opening=opening, device_hours=1.0)
    for name in "abcdefgh":
        assert found.suggest(name)["train"]["keys"]["rna"] == KEYS["rna"][0]
        end(found, name, last(0.1))
    assert found.redrawn > 0 and found.wanted == ()


def test_a_trial_whose_worker_dies_is_given_out_again_until_it_has_died_too_often(tmp_path: Path) -> None:
    found = searcher(tmp_path, max_failures=2)
    first = found.suggest("a")
    found.suggest("b")
    for name in ("c", "d"):
        died = {"c": "a", "d": "c"}[name]
        assert found.take_back(died) and found.has_interrupted
        assert found.suggest(name) == first and found.live[name].is_resumed
    assert not found.take_back("d") and not found.has_interrupted
    row, _ = found.close("d", epoch(1, 0.3), died=True)
    assert (row.number, row.state) == (0, "failed") and "died" in row.error


def test_what_is_open_when_a_sweep_is_cancelled_is_failed(tmp_path: Path) -> None:
    found = searcher(tmp_path)
    found.suggest("a")
    found.take_back("a")
    found.cancel_rest()
    assert [(row.state, row.error) for row in found.study.rows()] == [("failed", "cancelled by request")]


def test_the_tracker_is_told_of_an_end_before_the_study(tmp_path: Path) -> None:
    """A driver that is killed in between ends the trial once more, and tracks it."""
    found, told = searcher(tmp_path), list[tuple[str, bool]]()
    found.suggest("a")

    def track(row: TrialRow, end: str | None) -> None:
        told.append((row.state, found.study.trials[0].state.is_finished()))

    found.close("a", last(0.5), died=False, track=track)
    assert told == [("complete", False)] and found.study.rows()[0].state == "complete"


def test_a_storage_that_fails_ends_the_sweep_and_no_trial(tmp_path: Path) -> None:
    found = searcher(tmp_path, max_failures=1)
    callback = TrackTrials(found, Tracker(TrackingConfig(enabled=False)), shared=None)  # type: ignore[arg-type]
    lost = {**epoch(1, 0.3), "finished": True, "storage_error": "the disk is full"}
    found.suggest("a")
    callback.on_trial_complete(0, [], SimpleNamespace(trial_id="a", last_result=lost))
    assert found.has_interrupted and found.suggest("b")["number"] == 0
    with pytest.raises(StorageError, match="the disk is full"):
        callback.on_trial_complete(0, [], SimpleNamespace(trial_id="b", last_result=lost))
    assert [row.state for row in found.study.rows()] == ["running"]
