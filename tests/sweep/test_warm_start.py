"""What an earlier study or an MLflow run teaches a new one, and what is left out and why."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from isoformer.config import build
from isoformer.errors import StorageError
from isoformer.storage import open_storage
from isoformer.sweep import SearchSpace, SweepConfig
from isoformer.sweep.sampling import Drawing
from isoformer.sweep.study import Study, open_study
from isoformer.sweep.warm_start import WarmStart, earlier_trials
from isoformer.tracking import Tracker, TrackingConfig

SPACE = build(
    SearchSpace,
    {
        "fusion": {"path": "model.fusion", "choices": ["cross_attention", "concat"]},
        "heads": {"path": "model.heads", "choices": [1, 2, 4], "when": {"fusion": ["cross_attention"]}},
        "learning_rate": {"path": "learning_rate", "low": 1e-4, "high": 1e-2, "log": True},
        "modalities": {"path": "model.modalities", "choices": [["dna", "rna"], ["rna"]]},
    },
)
WIDER = build(
    SearchSpace, {**SPACE.model_dump(), "learning_rate": {"path": "learning_rate", "low": 1e-5, "high": 1.0}}
)
MADE_FROM = {"dataset": "abc", "metric": "val_r2"}


def study_at(root: Path, name: str, made_from: dict[str, str] | None = None) -> Study:
    (root / "studies" / name).mkdir(parents=True, exist_ok=True)
    url = f"sqlite:///{root}/studies/{name}/study.db"
    return open_study(url, name, SweepConfig(study=name), made_from=made_from or MADE_FROM)


def filled(root: Path, name: str, space: SearchSpace, made_from: dict[str, str] | None = None) -> Study:
    """Twelve complete trials whose score is the learning rate, a pruned one and a failed one."""
    study = study_at(root, name, made_from)
    drawing = Drawing(space, SweepConfig(sampler="random", seed=9), lag=0)
    for _ in range(14):
        drawn = drawing.next(study.trials)
        trial = study.begin(drawn.params, drawn.distributions, run_prefix=name)
        if trial.number < 12:
            study.end(trial, "complete", [drawn.params["learning_rate"]])
        elif trial.number == 12:
            study.report(trial, 0, 0.0)
            study.end(trial, "pruned")
        else:
            study.end(trial, "failed")
    return study


def warmed(root: Path, *sources: str, study: Study | None = None) -> WarmStart:
    config = SweepConfig(study="new", warm_start=sources)
    tracking = TrackingConfig().for_root(str(root))
    return earlier_trials(study or study_at(root, "new"), config, SPACE, open_storage(str(root)), tracking)


def test_a_study_of_the_same_data_is_shown_to_the_sampler(tmp_path: Path) -> None:
    old = filled(tmp_path, "old", SPACE)
    found = warmed(tmp_path, "old")
    assert [trial.params for trial in found.history] == [trial.params for trial in old.trials[:13]]
    assert found.queued == [] and found.left_out == {"did not end with a score": 1}
    with_url = warmed(tmp_path, f"sqlite:///{tmp_path}/studies/old/study.db#old")
    assert len(with_url.history) == 13


def test_the_sampler_learns_from_it(tmp_path: Path) -> None:
    filled(tmp_path, "old", SPACE)
    earlier = warmed(tmp_path, "old").history
    config = SweepConfig(sampler="tpe", trials=40, seed=1)
    cold, warm = (Drawing(SPACE, config, lag=2, earlier=history) for history in ([], earlier))
    study = study_at(tmp_path, "x")
    drawn = {name: [d.next(study.trials, attempt=k).params["learning_rate"] for k in range(30)]
             for name, d in (("cold", cold), ("warm", warm))}  # fmt: skip
    assert sum(drawn["warm"]) > 1.3 * sum(drawn["cold"]), "high rates had the high scores"


def test_values_outside_the_space_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = filled(tmp_path, "old", WIDER)
    with caplog.at_level(logging.WARNING):
        found = warmed(tmp_path, "old")
    inside = [t for t in old.trials[:13] if 1e-4 <= t.params["learning_rate"] <= 1e-2]
    assert len(found.history) == len(inside) < 13
    assert found.left_out["with values outside the space"] == 13 - len(inside)
    assert "with values outside the space" in caplog.text


def test_of_a_study_of_other_data_the_best_are_tried_first(tmp_path: Path) -> None:
    old = filled(tmp_path, "old", SPACE, {"dataset": "other", "metric": "val_r2"})
    found = warmed(tmp_path, "old")
    best = sorted(old.trials[:12], key=lambda trial: -trial.values[0])[:4]
    assert found.history == [] and found.queued == [trial.params for trial in best]
    drawing = Drawing(SPACE, SweepConfig(), lag=2, queued=found.queued)
    assert drawing.next(study_at(tmp_path, "new").trials).params == best[0].params


def test_a_resumed_sweep_is_shown_what_it_was_begun_with(tmp_path: Path) -> None:
    old = filled(tmp_path, "old", SPACE)
    new = study_at(tmp_path, "new")
    first = warmed(tmp_path, "old", study=new)
    drawn = Drawing(SPACE, SweepConfig(), lag=0).next(old.trials)
    old.end(old.begin(drawn.params, drawn.distributions, run_prefix="old"), "complete", [0.5])
    assert len(warmed(tmp_path, "old", study=new).history) == len(first.history)


def test_mlflow_runs_give_values_to_try(tmp_path: Path) -> None:
    tracking = TrackingConfig().for_root(str(tmp_path))
    with Tracker(tracking) as tracker:
        tracker.start_run(
            "trial", key="a", params={"fusion": "concat", "learning_rate": "0.002", "modalities": "rna"}
        )
        tracker.start_run("train", key="b", params={"model.fusion": "cross_attention", "model.heads": "4",
                          "learning_rate": "5.0", "model.modalities": "['dna', 'rna']"})  # fmt: skip
    from isoformer.tracking.sink import MlflowSink

    sink = MlflowSink(tracking)
    sink.warm()
    ids = [sink.run_id(key) for key in ("a", "b")]
    found = warmed(tmp_path, *(f"mlflow:{run}" for run in ids))
    assert found.queued == [
        {"fusion": "concat", "learning_rate": 0.002, "modalities": "rna"},
        {"fusion": "cross_attention", "heads": 4, "modalities": "dna+rna"},
    ], "a rate outside the range is drawn instead"
    with pytest.raises(StorageError, match="mlflow:nothing"):
        warmed(tmp_path, "mlflow:nothing")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone", r"studies/gone/study\.db is not there; allowed: a study of this root"),
        ("sqlite:////nowhere/study.db#x", "no such file"),
    ],
)
def test_a_source_that_is_not_there_is_named(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        warmed(tmp_path, source)


def test_a_database_without_the_study_says_which_it_has(tmp_path: Path) -> None:
    filled(tmp_path, "old", SPACE)
    with pytest.raises(StorageError, match="has no study 'other'; it has: old"):
        warmed(tmp_path, f"sqlite:///{tmp_path}/studies/old/study.db#other")
