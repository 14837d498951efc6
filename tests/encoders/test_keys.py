"""Keys of embedding datasets that exist: what does not change a value must not change them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from encoders.tiny import write_library_folder
from isoformer.embeddings.key import encoder_key
from isoformer.encoders.registry import EncoderChoice, get_spec, weights_digest

KEYS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"name": "esm2-8m"}, "66dc809b"),
    ({"name": "esm2-8m", "layer": -2, "average_layers": 3}, "d46fc08c"),
    ({"name": "ntv1-500m-human-ref-dna", "layer": -3}, "612295b8"),
    ({"name": "ntv2-50m-rna", "average_layers": 2}, "37d380cd"),
    ({"name": "rnafm", "layer": 4, "precision": "bf16"}, "730d451a"),
    ({"name": "enformer"}, "e4ff48d8"),
    ({"name": "borzoi"}, "c29a7586"),
    ({"name": "xpresso"}, "f48c6741"),
    ({"name": "unirep-64"}, "c8c91509"),
    ({"name": "mxfold2"}, "91421a88"),
)
OF_THE_LIBRARY: tuple[tuple[dict[str, Any], str], ...] = (
    ({}, "aee62a67"),
    ({"layer": 2}, "2ce28943"),
    ({"average_layers": 2}, "dbc97ccd"),
)


def key(choice: EncoderChoice) -> str:
    return encoder_key(get_spec(choice), weights_digest(choice), "pooled")


@pytest.mark.parametrize(("options", "expected"), KEYS)
def test_keys_stay_what_they_are(options: dict[str, Any], expected: str) -> None:
    choice = EncoderChoice(**options, random_seed=0)
    assert key(choice) == f"{choice.name}.random-0.pooled.f16.{expected}"


@pytest.mark.parametrize(("options", "expected"), OF_THE_LIBRARY)
def test_keys_of_library_models_stay_what_they_are(
    options: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    folder = write_library_folder(tmp_path / "pinned")
    choice = EncoderChoice(name=f"hf:{folder}", modality="protein", random_seed=0, **options)
    assert key(choice) == f"hf-pinned.random-0.pooled.f16.{expected}"


def test_keys_of_what_needs_no_weights_stay_what_they_are() -> None:
    assert key(EncoderChoice(name="composition-dna")) == "composition-dna.none.pooled.f16.4f15999a"
