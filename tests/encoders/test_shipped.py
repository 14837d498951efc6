"""The shipped tiny encoders: contract, golden vectors, size, model cards, and what they are labelled as."""

from __future__ import annotations

import json

import numpy as np
import pytest

from encoders.contract import EncoderContract
from encoders.golden import FILE, SHIPPED, golden
from isoformer.encoders.registry import EncoderChoice, get_spec
from isoformer.encoders.weights_files import SHIPPED as FOLDER


class TestEsm2Tiny(EncoderContract):
    @pytest.fixture
    def choice(self) -> EncoderChoice:
        return EncoderChoice(name="esm2-tiny")


class TestNtv2TinyDna(EncoderContract):
    @pytest.fixture
    def choice(self) -> EncoderChoice:
        return EncoderChoice(name="ntv2-tiny-dna")


class TestNtv2TinyRna(EncoderContract):
    @pytest.fixture
    def choice(self) -> EncoderChoice:
        return EncoderChoice(name="ntv2-tiny-rna")


class TestNtv2TinyRnaRandom(EncoderContract):
    @pytest.fixture
    def choice(self) -> EncoderChoice:
        return EncoderChoice(name="ntv2-tiny-rna", random_seed=0)


@pytest.mark.parametrize("name", SHIPPED)
def test_golden_vectors(name: str) -> None:
    expected = json.loads(FILE.read_text(encoding="utf-8"))[name]
    found = golden(name)
    assert found["weights"] == expected["weights"], "new weights: run tests/encoders/golden.py"
    np.testing.assert_allclose(found["pooled"], expected["pooled"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_card_says_what_they_are(name: str) -> None:
    card = (FOLDER / name / "model_card.md").read_text(encoding="utf-8")
    for words in ("**tiny**", "Held out", "unigram", "GRCh37", "MIT", "public domain", "Apache-2.0"):
        assert words in card
    spec = get_spec(EncoderChoice(name=name))
    assert (spec.trained, spec.licence) == ("pre-trained", "Apache-2.0")
    assert get_spec(EncoderChoice(name=name, random_seed=1)).trained == "random"


def test_all_weights_together_are_small() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < 8_000_000
