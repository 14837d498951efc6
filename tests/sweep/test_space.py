"""A search space is data, and is refused at the door where the configuration it edits would not take it."""

from __future__ import annotations

import optuna
import pytest

from isoformer.config import build
from isoformer.documents import parse_yaml
from isoformer.errors import ConfigError
from isoformer.model import ModelConfig
from isoformer.sweep.default_space import default_space
from isoformer.sweep.space import SearchSpace, label
from isoformer.training.config import TrainConfig

BASE = TrainConfig(
    keys={"rna": "a.1.pooled.f16.x", "protein": "b.1.pooled.f16.y"},
    model=ModelConfig(modalities=("rna", "protein")),
)
KEYS = {
    "rna": ("a.1.pooled.f16.x", "a.1.bins-4.f16.z"),
    "protein": ("b.1.pooled.f16.y", "b.1.bins-4.f16.w"),
}


def drawn(space: SearchSpace, **params: object) -> TrainConfig:
    return space.applied(BASE, space.draw(optuna.trial.FixedTrial(params)))


def test_values_land_where_their_paths_say() -> None:
    space = build(
        SearchSpace,
        {
            "lr": {"path": "learning_rate", "low": 1e-4, "high": 1e-2, "log": True},
            "modalities": {"path": "model.modalities", "choices": [["rna", "protein"], ["rna"]]},
        },
    )
    config = drawn(space, lr=3e-3, modalities="rna")
    assert config.learning_rate == 3e-3 and config.model.modalities == ("rna",)
    assert config.model.fusion == BASE.model.fusion


def test_a_conditional_parameter_is_drawn_only_where_its_condition_holds() -> None:
    space = default_space(KEYS)
    common = {"width": 16, "learning_rate": 1e-3, "dropout": 0.0, "modalities": "rna+protein"}
    common["resolution"] = "bins-4"
    concat = drawn(space, fusion="concat", **common)
    attention = drawn(space, fusion="cross_attention", heads=2, **common)
    assert concat.model.heads == BASE.model.heads
    assert attention.model.heads == 2
    assert attention.keys == {"rna": "a.1.bins-4.f16.z", "protein": "b.1.bins-4.f16.w"}


def test_the_default_space_fits_the_default_configuration() -> None:
    assert default_space(KEYS).check(BASE) > 100


def test_encoders_that_differ_in_more_than_resolution_are_named() -> None:
    space = default_space({"rna": ("a.1.pooled.f16.x", "c.1.pooled.f16.z")})
    assert list(space.root["encoders"].by_label) == ["a/pooled", "c/pooled"]


def test_encoders_with_different_numbers_of_keys_are_searched_one_by_one() -> None:
    space = default_space({"rna": KEYS["rna"], "protein": KEYS["protein"][:1]})
    assert "encoder_rna" in space.root and "encoder_protein" not in space.root


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": {"path": "model.nothing", "choices": [1]}}, "model.nothing.*allowed here.*fusion"),
        ({"a": {"path": "model.fusion", "choices": ["concat", "fancy"]}}, "fancy"),
        (
            {
                "width": {"path": "model.width", "choices": [16, 20]},
                "heads": {"path": "model.heads", "choices": [4, 8]},
            },
            r"width=20, heads=8.*heads 8 does not divide width 20",
        ),
        ({"a": {"path": "learning_rate", "low": -1.0, "high": 1.0}}, "learning_rate"),
    ],
)
def test_a_space_that_the_configuration_does_not_take_is_refused(data: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        build(SearchSpace, data).check(BASE)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": {"path": "seed"}}, "either choices, or both low and high"),
        ({"a": {"path": "seed", "low": 3, "high": 1}}, "must be below"),
        ({"a": {"path": "seed", "low": 0, "high": 1, "log": True}}, "log needs low above 0"),
        ({"a": {"path": "seed", "choices": [1, 1]}}, "must differ"),
        ({"a": {"path": "seed", "choices": [1], "when": {"b": [1]}}}, "no earlier parameter"),
        (
            {
                "b": {"path": "seed", "choices": [1]},
                "a": {"path": "epochs", "choices": [1], "when": {"b": [2]}},
            },
            r"its choices are \[1\]",
        ),
        ({}, "at least one parameter"),
        ({"a": {"path": "seed", "choices": [1, 2], "labels": ["x"]}}, "1 labels for 2 choices"),
        ({"a": {"path": "seed", "choices": [1, 2], "labels": ["x", "x"]}}, "must differ"),
        ({"a": {"path": "seed", "choices": [1], "step": 2}}, "step"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(data: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(SearchSpace, data)


def test_whole_ranges_give_whole_numbers() -> None:
    space = build(SearchSpace, {"batch": {"path": "batch_size", "low": 8, "high": 64, "log": True}})
    assert drawn(space, batch=13).batch_size == 13


def test_labels_are_short_and_scalar() -> None:
    assert label({"rna": "ntv1-2.5b-1000g-rna.1a2b.bins-4.f16.99aa"}) == "ntv1-2.5b-1000g-rna/bins-4"
    assert label(("dna", "rna")) == "dna+rna"
    assert label({"rna": "a.1.pooled.f16.x", "dna": "c.1.pooled.f16.x"}) == "a/pooled c/pooled"
    assert label(0.5) == 0.5


@pytest.mark.parametrize(
    ("parameter", "problem"),
    [
        (
            "{path: batch_size, low: 1, high: 1000000000, points: 1000000000}",
            "points: .*less than or equal to 10000",
        ),
        ("{path: learning_rate, low: 0.1, high: .inf}", "must be within"),
        ("{path: learning_rate, low: .nan, high: 1.0}", "must be below"),
        ("{path: epochs, low: 1, high: " + "9" * 400 + "}", "must be within"),
    ],
)
def test_a_range_that_nobody_can_draw_from_is_refused(parameter: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        build(SearchSpace, parse_yaml(f"a: {parameter}"))
