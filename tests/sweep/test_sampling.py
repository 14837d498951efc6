"""What is drawn follows from seed and number, not from which trial was faster."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial

from isoformer.config import build
from isoformer.errors import ConfigError
from isoformer.sweep import SearchSpace, SweepConfig
from isoformer.sweep.sampling import Drawing, grid, require_variants
from isoformer.sweep.study import Study, open_study

SPACE = build(
    SearchSpace,
    {
        "fusion": {"path": "model.fusion", "choices": ["cross_attention", "concat", "c_abstractor"]},
        "heads": {"path": "model.heads", "choices": [1, 2, 4], "when": {"fusion": ["cross_attention"]}},
        "learning_rate": {"path": "learning_rate", "low": 1e-4, "high": 1e-2, "log": True},
    },
)


def score(params: dict[str, Any]) -> float:
    return -abs(params["learning_rate"] - 3e-3) * 100 + (params["fusion"] == "concat") * 0.3


def run(tmp_path: Path, config: SweepConfig, *, lag: int, order: str, variants: str | None = None) -> Study:
    """Trials three at a time, ended in the `order` given."""
    study = open_study(f"sqlite:///{tmp_path}/{order}.db", "s", config, made_from={"space": "x"})
    drawing = Drawing(SPACE, config, lag=lag, variants=variants)
    running: list[FrozenTrial] = []
    while study.done < config.trials:
        while len(running) < 3 and len(study.trials) < config.trials and drawing.is_ready(study.trials):
            drawn = drawing.next(study.trials)
            running.append(
                study.begin(
                    drawn.params, drawn.distributions, run_prefix="r", sampler_state=drawn.sampler_state
                )
            )
        ended = running.pop(0 if order == "first in, first out" else -1)
        values = [score(ended.params)] + ([ended.number % 4 + 1.0] if config.cost else [])
        study.report(ended, 0, values[0])
        study.end(ended, "complete", values)
    return study


def params_of(study: Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes", "nsga2", "random"])
def test_a_repeatable_sweep_draws_the_same_whatever_order_trials_end_in(tmp_path: Path, sampler: Any) -> None:
    config = SweepConfig(sampler=sampler, trials=18, seed=3)
    first, second = (
        run(tmp_path, config, lag=6, order=order) for order in ("first in, first out", "last in, first out")
    )
    assert params_of(first) == params_of(second)
    assert len({tuple(sorted(p.items())) for p in params_of(first)}) > 12
    other = run(tmp_path / "..", config.edited(seed=4), lag=6, order=f"{tmp_path.name} seed 4")
    assert params_of(other) != params_of(first)


def test_without_it_all_that_is_known_is_used(tmp_path: Path) -> None:
    config = SweepConfig(sampler="tpe", trials=24, seed=3, repeatable=False)
    first, second = (
        run(tmp_path, config, lag=0, order=order) for order in ("first in, first out", "last in, first out")
    )
    assert params_of(first)[:3] == params_of(second)[:3] and params_of(first) != params_of(second)


def test_a_model_of_scores_finds_more_than_chance(tmp_path: Path) -> None:
    means = {}
    for sampler in ("tpe", "random"):
        config = SweepConfig(sampler=sampler, trials=60, seed=1)  # type: ignore[arg-type]
        (tmp_path / sampler).mkdir()
        study = run(tmp_path / sampler, config, lag=6, order="first in, first out")
        means[sampler] = sum(trial.values[0] for trial in study.trials[30:]) / 30
    assert means["tpe"] > means["random"] + 0.05


def test_variants_have_equal_budgets_and_know_nothing_of_each_other(tmp_path: Path) -> None:
    config = SweepConfig(sampler="tpe", trials=30, seed=1)
    study = run(tmp_path, config, lag=6, order="first in, first out", variants="fusion")
    assert set(Counter(p["fusion"] for p in params_of(study)).values()) == {10}
    drawing = Drawing(SPACE, config, lag=6, variants="fusion")
    seen = drawing.visible(study.trials, 29, "concat")
    assert {trial.params["fusion"] for trial in seen} == {"concat"} and len(seen) == 8
    assert all(("heads" in p) == (p["fusion"] == "cross_attention") for p in params_of(study))


def test_two_objectives_are_sampled_together(tmp_path: Path) -> None:
    for sampler in ("tpe", "nsga2", "gp"):
        config = SweepConfig(sampler=sampler, trials=14, cost="parameters")  # type: ignore[arg-type]
        study = run(tmp_path, config, lag=4, order=f"{sampler}")
        assert all(len(trial.values) == 2 for trial in study.trials)


def test_a_trial_is_not_drawn_before_those_it_builds_on_have_ended(tmp_path: Path) -> None:
    config = SweepConfig(trials=9)
    study = open_study(f"sqlite:///{tmp_path}/s.db", "s", config, made_from={})
    drawing = Drawing(SPACE, config, lag=2)
    for _ in range(3):
        assert drawing.is_ready(study.trials) == (len(study.trials) < 3)
        drawn = drawing.next(study.trials)
        study.begin(drawn.params, drawn.distributions, run_prefix="r")
    assert not drawing.is_ready(study.trials)
    study.end(study.trials[0], "failed")
    assert drawing.is_ready(study.trials)


def test_a_grid_is_every_combination_once(tmp_path: Path) -> None:
    data = SPACE.model_dump()
    data["learning_rate"]["points"] = 3
    space = build(SearchSpace, data)
    points = list(grid(space))
    assert len(points) == 3 * 3 + 2 * 3 == len({tuple(sorted(p.items())) for p in points})
    assert {round(p["learning_rate"], 9) for p in points} == {1e-4, 1e-3, 1e-2}
    config = SweepConfig(sampler="grid", trials=100)
    drawing = Drawing(space, config, lag=2)
    assert drawing.limit == 15
    study = open_study(f"sqlite:///{tmp_path}/s.db", "s", config, made_from={})
    for _ in range(15):
        drawn = drawing.next(study.trials)
        study.end(study.begin(drawn.params, drawn.distributions, run_prefix="r"), "complete", [0.0])
    assert params_of(study) == points
    with pytest.raises(ConfigError, match=r"learning_rate.*needs points"):
        list(grid(SPACE))


def test_variants_must_be_a_choice_that_every_trial_has() -> None:
    require_variants(SPACE, "fusion")
    for bad in ("heads", "learning_rate", "nothing"):
        with pytest.raises(ConfigError, match=f"{bad}.*allowed: fusion"):
            require_variants(SPACE, bad)
