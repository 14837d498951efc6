"""A study is read as it stands, and what is said about it is what a slow, plain computation says."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest

from isoformer.errors import StorageError
from isoformer.report.parameter_figures import Scale
from isoformer.report.study import Study, Trial, read_study
from isoformer.report.study_facts import (
    best_against_cost,
    best_so_far,
    categories,
    is_numeric,
    pareto_front,
    variants,
)
from isoformer.report.sweep_figures import cut_off, score_range
from isoformer.storage import open_storage
from made_study import a_study


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return a_study(200, seed=11)


@pytest.fixture(scope="module")
def study(made: dict[str, Any]) -> Study:
    return Study.model_validate(made)


def complete(made: dict[str, Any]) -> list[dict[str, Any]]:
    return [trial for trial in made["trials"] if trial["state"] == "complete"]


def test_the_front_is_what_no_other_trial_beats(made: dict[str, Any], study: Study) -> None:
    rated = [(trial["number"], *trial["values"]) for trial in complete(made)]
    expected = {
        number for number, score, weights in rated
        if not any(s >= score and w <= weights and (s, w) != (score, weights) for _, s, w in rated)
    }  # fmt: skip
    front = pareto_front(study)
    assert {trial.number for trial in front} == expected
    assert 1 < len(front) < len(rated)
    scores = [trial.values[0] for trial in front]
    assert scores == sorted(scores, reverse=True), "best first"


def test_equal_trials_are_on_the_front_together(made: dict[str, Any]) -> None:
    first = pareto_front(Study.model_validate(made))[0]
    twin = copy.deepcopy(made["trials"][first.number]) | {"number": 999}
    front = pareto_front(Study.model_validate({**made, "trials": [*made["trials"], twin]}))
    assert {first.number, 999} <= {trial.number for trial in front}


def test_one_objective_has_no_front(made: dict[str, Any]) -> None:
    assert pareto_front(Study.model_validate({**made, "objectives": made["objectives"][:1]})) == []


def test_the_best_so_far_is_a_running_maximum(made: dict[str, Any], study: Study) -> None:
    scored = [trial for trial in made["trials"] if trial["value"] is not None]
    expected = []
    for trial in scored:
        before = [t["value"] for t in complete(made) if t["number"] <= trial["number"]]
        if before:
            expected.append((trial["number"], max(before)))
    assert best_so_far(study) == expected


def test_where_less_is_better_the_best_is_the_lowest(made: dict[str, Any]) -> None:
    objectives = [{"name": "val_loss", "direction": "minimize"}]
    study = Study.model_validate({**made, "objectives": objectives})
    assert best_so_far(study)[-1][1] == min(trial["value"] for trial in complete(made))
    assert study.ranked()[0].score == best_so_far(study)[-1][1]


def test_cost_adds_up_in_the_order_trials_ended(made: dict[str, Any]) -> None:
    shuffled = {**made, "trials": made["trials"][::-1]}
    study = Study.model_validate(shuffled)
    line = best_against_cost(study, study.trials)
    in_order = sorted(made["trials"], key=lambda trial: trial["ended"])
    assert line[-1][0] == pytest.approx(sum(trial["device_seconds"] for trial in in_order))
    for spent, best in line[:: len(line) // 7]:
        until, total = 0, 0.0
        while total < spent - 1e-6:
            total += in_order[until]["device_seconds"]
            until += 1
        values = [trial["value"] for trial in in_order[:until] if trial["state"] == "complete"]
        assert best == max(values)


def test_variants_share_out_all_trials(made: dict[str, Any], study: Study) -> None:
    found = variants(study)
    assert sum(len(one.trials) for one in found) == len(made["trials"])
    for one in found:
        scores = sorted(t["value"] for t in complete(made) if t["params"]["fusion"] == one.name)
        middle = len(scores) // 2
        median = scores[middle] if len(scores) % 2 else (scores[middle - 1] + scores[middle]) / 2
        assert (one.best, one.median, one.complete) == (scores[-1], pytest.approx(median), len(scores))


def test_kinds_and_orders_of_parameters(study: Study) -> None:
    assert [name for name in study.parameters if is_numeric(study, name)] == ["learning_rate", "dropout"]
    assert categories(study, "width") == ["16", "32", "64"]
    assert categories(study, "modalities") == ["dna+rna+protein", "rna+protein", "rna"]
    scale = Scale(study, "learning_rate")
    assert scale.place((3e-4 * 1e-2) ** 0.5) == pytest.approx(0.5), "even by logarithm"
    assert [text for _, text in scale.ticks()] == ["0.0003", "0.0017", "0.01"]


def test_choices_of_every_kind_have_a_label() -> None:
    choices = [None, 16, 0.2, True, ["dna", "rna"]]
    space = {"x": {"path": "x", "choices": choices}, "keys": {"path": "keys", "choices": [{"dna": "k1"}]}}
    trials = [{"number": 0, "state": "complete", "value": 0.1, "params": {"x": "dna+rna", "keys": "k1/bins"}}]
    study = Study.model_validate({"study": "kinds", "space": space, "trials": trials})
    assert categories(study, "x") == ["null", "16", "0.2", "yes", "dna+rna"]
    assert categories(study, "keys") == ["k1/bins"]
    assert Scale(study, "x").place(None) == 0.0


def test_scores_that_no_figure_draws_do_not_stretch_its_axis(made: dict[str, Any], study: Study) -> None:
    failed = {"number": 900, "state": "failed", "value": 5.0, "params": {}}
    running = {"number": 901, "state": "running", "value": 7.0, "params": {}}
    more = Study.model_validate({**made, "trials": [*made["trials"], failed, running]})
    assert score_range(more) == score_range(study)


def test_a_trial_that_diverged_does_not_flatten_the_others(made: dict[str, Any], study: Study) -> None:
    low, high = score_range(study)
    values = sorted(trial["value"] for trial in made["trials"] if trial["value"] is not None)
    assert values[0] < -6 < low < values[1] and high > values[-1]
    assert cut_off(study) == 1


def test_a_file_of_the_first_version_is_read(tmp_path: Path) -> None:
    trial = {
        "number": 0, "state": "complete", "value": 0.3, "params": {"width": 8}, "epochs": 2, "seconds": 1.5,
        "error": "", "run": "r0",
    }  # fmt: skip
    old = {"study": "old", "metric": "val_r2", "direction": "maximize", "seconds": 3.0, "best": 0}
    old |= {"importances": {}, "space": {"width": {"path": "model.width"}}, "trials": [trial]}
    folder = tmp_path / "studies" / "old"
    folder.mkdir(parents=True)
    (folder / "trials.json").write_text(json.dumps(old))
    study = read_study(open_storage(tmp_path), "old")
    assert (study.targets[0].name, study.ranked()[0].score, study.finals) == ("val_r2", 0.3, ())
    assert study.trials[0].cost_seconds == 1.5


def test_what_is_not_there_or_not_readable_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "studies" / "bad"
    folder.mkdir(parents=True)
    (folder / "trials.json").write_text(
        '{"study": "bad", "trials": [{"number": "one", "state": "complete"}]}'
    )
    with pytest.raises(StorageError, match=r"studies/bad/trials.json: cannot be read: trials.0.number"):
        read_study(open_storage(tmp_path), "bad")
    with pytest.raises(StorageError, match="there is no such study; there are: bad"):
        read_study(open_storage(tmp_path), "none")


@pytest.mark.parametrize(
    ("value", "can_be_drawn"), [(0.5, True), (1e308, False), (math.inf, False), (math.nan, False)]
)
def test_a_score_that_no_axis_can_hold_is_none(value: float, can_be_drawn: bool) -> None:
    assert (Trial(number=0, state="complete", values=(value,)).score is not None) == can_be_drawn
