"""Configuration is checked at the door: unknown keys, wrong values and bad overrides are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from isoformer.config import FrozenConfig, build, load_yaml, to_yaml, with_overrides
from isoformer.errors import ConfigError, InputError


class Inner(FrozenConfig):
    learning_rate: float = 1e-3
    tissues: tuple[str, ...] = ()


class Outer(FrozenConfig):
    root: str = "here"
    train: Inner = Inner()


def test_unknown_key_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown key 'train.learning_rat'; did you mean 'learning_rate'\?"
    ):
        build(Outer, {"train": {"learning_rat": 1}})


def test_wrong_value_is_named_with_its_key() -> None:
    with pytest.raises(ConfigError, match=r"run.yaml: train.learning_rate: .* got 'fast'"):
        build(Outer, {"train": {"learning_rate": "fast"}}, origin="run.yaml")


def test_overrides_are_yaml_and_do_not_touch_the_original() -> None:
    data = {"train": {"learning_rate": 1.0}}
    result = with_overrides(data, ["train.learning_rate=0.5", "train.tissues=[Liver, Lung]", "root=s3://b/p"])
    assert build(Outer, result) == Outer(
        root="s3://b/p", train=Inner(learning_rate=0.5, tissues=("Liver", "Lung"))
    )
    assert data == {"train": {"learning_rate": 1.0}}


@pytest.mark.parametrize("override", ["nonsense", "=3", "root.deeper=3", "train.learning_rate=[1"])
def test_bad_override_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        with_overrides({"root": "here"}, [override])


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00"])
def test_a_file_that_is_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_yaml(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        load_yaml(tmp_path / "none.yaml")


def test_resolved_configuration_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "resolved.yaml"
    path.write_text(to_yaml(Outer(root="there")))
    assert build(Outer, load_yaml(path)) == Outer(root="there")


def test_input_error_names_place_value_and_what_is_allowed() -> None:
    error = InputError(
        "not a strand", file="x.gtf", line=7, record="ENST1", field="strand", value="x", allowed=["+", "-"]
    )
    assert str(error) == "x.gtf, line 7, ENST1, field 'strand': not a strand: got 'x'; allowed: +, -"
