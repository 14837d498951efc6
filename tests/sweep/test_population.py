"""Population-based training: who goes on from whom, with what, and that weights are really gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoformer.config import build
from isoformer.errors import ConfigError
from isoformer.model import ModelConfig
from isoformer.sweep import SearchSpace, SweepConfig
from isoformer.sweep.data import SharedData
from isoformer.sweep.population import FACTORS, require_constant_rate
from isoformer.sweep.sampling import Drawing
from isoformer.sweep.study import open_study
from isoformer.sweep.trial import TrialPlace, search
from isoformer.training.config import TrainConfig
from sweep.conftest import KEYS

SPACE = build(
    SearchSpace,
    {
        "width": {"path": "model.width", "choices": [8, 16]},
        "learning_rate": {"path": "learning_rate", "low": 1e-4, "high": 1e-2, "log": True},
        "dropout": {"path": "model.dropout", "choices": [0.0, 0.1, 0.2]},
    },
)
CONFIG = SweepConfig(scheduler="pbt", population=8, trials=24, generation_epochs=3, seed=5)


def test_the_weak_go_on_from_the_strong_and_the_others_from_themselves(tmp_path: Path) -> None:
    study = open_study(f"sqlite:///{tmp_path}/s.db", "s", CONFIG, made_from={})
    drawing = Drawing(SPACE, CONFIG, lag=0)
    for number in range(24):
        assert drawing.is_ready(study.trials)
        drawn = drawing.next(study.trials)
        trial = study.begin(drawn.params, drawn.distributions, run_prefix="r", parent=drawn.parent)
        assert drawing.population is not None and drawing.population.epochs_of(number) == 3 * (
            number // 8 + 1
        )
        if number % 8 == 7:
            assert not drawing.is_ready(study.trials), "a generation ends before the next one begins"
        if number == 13:
            study.end(trial, "failed")
        else:
            study.end(trial, "complete", [float(number % 8)])
        if number % 8 == 7:
            continue
    rows = study.rows()
    assert [row.parent for row in rows[:8]] == [None] * 8
    for number in range(8, 24):
        row, own = rows[number], rows[number - 8]
        assert row.parent is not None
        parent = rows[row.parent]
        assert row.parent // 8 == number // 8 - 1 and row.params["width"] == parent.params["width"]
        weak = number % 8 < 2 or own.state == "failed"
        assert (row.parent % 8 in (6, 7)) if weak else (row.parent == number - 8 and row.params == own.params)
    changed = [
        rows[n].params["learning_rate"] / rows[rows[n].parent or 0].params["learning_rate"]
        for n in (8, 9, 16, 17)
    ]
    assert all(ratio != 1 for ratio in changed)
    assert any(np.isclose(ratio, FACTORS).any() for ratio in changed)


def test_a_rerun_has_the_same_children(tmp_path: Path) -> None:
    study = open_study(f"sqlite:///{tmp_path}/s.db", "s", CONFIG, made_from={})
    drawing = Drawing(SPACE, CONFIG, lag=0)
    for _ in range(8):
        drawn = drawing.next(study.trials)
        study.end(study.begin(drawn.params, drawn.distributions, run_prefix="r"), "complete", [0.0])
    again = Drawing(SPACE, CONFIG, lag=0)
    assert drawing.next(study.trials).params == again.next(study.trials).params


def trained(
    shared: SharedData, place: TrialPlace, number: int, parent: int | None, **changes: Any
) -> list[Any]:
    config = TrainConfig(
        keys={"rna": KEYS["rna"][0]}, model=ModelConfig(modalities=("rna",), width=8, heads=1), patience=99
    )
    sent: list[dict[str, Any]] = []
    search(
        {**config.model_dump(), **changes}, shared,
        metric="val_r2", send=sent.append, place=place, number=number, parent=parent,
    )  # fmt: skip
    return sent


def test_a_child_goes_on_from_its_parents_weights(shared: SharedData, tmp_path: Path) -> None:
    place = TrialPlace(str(tmp_path), "s", 0.0, keeps_models=True)
    parent = trained(shared, place, 0, None, epochs=4, learning_rate=1e-3)
    whole = trained(shared, place, 1, None, epochs=8, learning_rate=1e-3)
    same = trained(shared, place, 8, 0, epochs=8, learning_rate=1e-3)
    other = trained(shared, place, 9, 0, epochs=8, learning_rate=8e-3)
    assert [sent["error"] for run in (parent, whole, same, other) for sent in run] == [""] * (5 + 9 + 6 + 6)
    assert [sent["epoch"] for sent in same] == [3, 4, 5, 6, 7, 7]
    losses = {name: [sent["train_loss"] for sent in run] for name, run in (("whole", whole), ("same", same))}
    assert losses["same"] == losses["whole"][3:], "with nothing changed it is one long training"
    assert other[0]["train_loss"] == same[0]["train_loss"] and other[2]["train_loss"] != same[2]["train_loss"]
    assert same[-1]["seconds"] < whole[-1]["seconds"] * 3, "a child's seconds are its own"
    wider = trained(shared, place, 10, 0, epochs=8, model={"modalities": ["rna"], "width": 16, "heads": 1})
    assert "size mismatch" in wider[-1]["error"] or "shape" in wider[-1]["error"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"variants": "width"}, "variants do not go with scheduler pbt"),
        ({"epochs": 4}, "epochs do not go with scheduler pbt"),
        ({"sampler": "grid"}, "grid does not go with scheduler pbt"),
        ({"cost": "seconds"}, "compares one score"),
    ],
)
def test_what_has_no_generations_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(SweepConfig, {"scheduler": "pbt", **given})


def test_something_must_be_able_to_change_while_a_model_trains() -> None:
    space = build(SearchSpace, {"width": {"path": "model.width", "choices": [8, 16]}})
    with pytest.raises(ConfigError, match="has none of it"):
        Drawing(space, CONFIG, lag=0)
    with pytest.raises(ConfigError, match="schedule constant, not cosine"):
        require_constant_rate(TrainConfig(schedule="cosine"))
