"""The best trials fitted anew, over seeds: whole runs, scored once on genes that no trial saw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from isoformer.config import build
from isoformer.errors import ConfigError
from isoformer.storage import open_storage
from isoformer.sweep import FinalConfig, SweepConfig, SweepResult, TrialRow
from isoformer.sweep.finals import final_runs, finals_key, fit_finals, score_finals
from isoformer.sweep_stages import best_final
from isoformer.training.config import TrainConfig
from isoformer.training.runs import RunFolder
from made_dataset import write_embeddings
from tiny_dataset import write_dataset


def result_of(keys: dict[Any, str]) -> SweepResult:
    rates = {0: 1e-3, 1: 3e-3, 2: 2e-3}
    values = {0: 0.1, 1: 0.3, 2: 0.2}
    base = TrainConfig(keys=keys, model={"modalities": list(keys), "width": 8, "heads": 2}, epochs=3)  # type: ignore[arg-type]
    rows = [
        TrialRow(n, "complete", values[n], {"rate": rate}, 3, 1.0, values=[values[n]])
        for n, rate in rates.items()
    ]
    return SweepResult(
        study="s",
        metric="val_r2",
        folder="",
        trials=[*rows, TrialRow(3, "pruned", 0.9, {"rate": 1e-2}, 1, 1.0)],
        best=None,
        best_trial=rows[1],
        importances={},
        objectives=(("val_r2", "maximize"),),
        configs={n: base.edited(learning_rate=rate) for n, rate in rates.items()},
    )


def test_the_best_complete_trials_each_with_its_seeds() -> None:
    config = SweepConfig(study="s", final=FinalConfig(top=2, seeds=(0, 7), epochs=9))
    runs = final_runs(result_of({"rna": "k"}), config)
    assert [(run.rank, run.trial, run.seed, run.name) for run in runs] == [
        (1, 1, 0, "s-top1-seed0"), (1, 1, 7, "s-top1-seed7"),
        (2, 2, 0, "s-top2-seed0"), (2, 2, 7, "s-top2-seed7"),
    ]  # fmt: skip
    assert [(run.config.learning_rate, run.config.seed, run.config.epochs) for run in runs[:2]] == [
        (3e-3, 0, 9), (3e-3, 7, 9),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="top 4: the study has 3 complete"):
        final_runs(result_of({"rna": "k"}), config.edited(final={"top": 4}))


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1]])
def test_seeds_are_different_whole_numbers(seeds: list[int]) -> None:
    with pytest.raises(ConfigError, match="seeds"):
        build(FinalConfig, {"top": 1, "seeds": seeds})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_they_are_fitted_and_scored_once(ray_local: None, tmp_path: Path) -> None:
    write_dataset(str(tmp_path), genes_per_shard=10)
    keys: Any = {m: write_embeddings(str(tmp_path), m, key=f"made-{m}") for m in ("rna", "protein")}
    config = SweepConfig(study="s", final=FinalConfig(top=2, seeds=(0, 1)))
    runs = final_runs(result_of(keys), config)
    fit_finals(runs, config, str(tmp_path))
    found = score_finals(runs, result_of(keys), str(tmp_path), draws=20)
    storage = open_storage(str(tmp_path))
    assert json.loads(storage.read_bytes(finals_key("s"))) == found
    assert [model["trial"] for model in found["models"]] == [1, 2]
    for model in found["models"]:
        tests = [run["test"]["r2"] for run in model["runs"]]
        assert model["test_mean"]["r2"] == pytest.approx(sum(tests) / 2)
        assert model["test_sd"]["r2"] == pytest.approx(abs(tests[0] - tests[1]) / 2**0.5)
    written = {run.name: storage.stamp(f"runs/{run.name}/evaluation.json") for run in runs}
    fit_finals(runs, config, str(tmp_path))
    assert score_finals(runs, result_of(keys), str(tmp_path), draws=20) == found
    assert written == {run.name: storage.stamp(f"runs/{run.name}/evaluation.json") for run in runs}
    settings = RunFolder(storage, runs[0].name).settings()
    assert settings.train.learning_rate == 3e-3 and settings.train.seed == 0


def test_test_scores_choose_nothing() -> None:
    def run(name: str, val: float, test: float) -> dict[str, Any]:
        return {"run": name, "val": {"val_r2": val}, "test": {"r2": test}}

    models = [
        {"runs": [run("a0", 0.1, 0.9), run("a1", 0.2, 0.9)]},
        {"runs": [run("b0", 0.2, 0.1), run("b1", 0.3, 0.0)]},
    ]
    assert best_final({"models": models}) == "b1"
