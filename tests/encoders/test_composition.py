"""The composition encoders: their contract, and counts done by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from encoders.contract import EncoderContract
from isoformer.encoders.registry import EncoderChoice, get_spec, load_encoder, load_tokenizer
from isoformer.encoders.resolution import reduce
from isoformer.encoders.spec import pack
from isoformer.errors import ConfigError


class TestCompositionDna(EncoderContract):
    @pytest.fixture
    def choice(self) -> EncoderChoice:
        return EncoderChoice(name="composition-dna")


class TestCompositionRna(EncoderContract):
    @pytest.fixture
    def choice(self) -> EncoderChoice:
        return EncoderChoice(name="composition-rna")


class TestCompositionProtein(EncoderContract):
    @pytest.fixture
    def choice(self) -> EncoderChoice:
        return EncoderChoice(name="composition-protein")


def pooled(name: str, sequence: str) -> np.ndarray:
    choice = EncoderChoice(name=name)
    tokens = load_tokenizer(choice)(sequence)
    return reduce(load_encoder(choice, "cpu").encode(pack([tokens])), "pooled")[0][0]


def test_pooled_is_the_composition_by_hand() -> None:
    sequence = "ACGTNACGGTTACGATCGGATTACAGGGGGGCCA"  # over two tokens, one N
    vector = pooled("composition-dna", sequence)
    known = sequence.replace("N", "")
    assert vector[:4] == pytest.approx([known.count(letter) / len(known) for letter in "ACGT"], abs=1e-6)
    words = [sequence[i : i + 2] for i in range(len(sequence) - 1) if "N" not in sequence[i : i + 2]]
    expected = [words.count(b + a) / len(words) for a, b in itertools.product("ACGT", repeat=2)]
    assert vector[4:20] == pytest.approx(expected, abs=1e-6)
    assert vector[20:].sum() == pytest.approx(1, abs=1e-5)


def test_protein_frequencies_sum_to_one_without_the_unknown() -> None:
    vector = pooled("composition-protein", "MKKLXXWW*")
    assert vector.sum() == pytest.approx(1, abs=1e-6)
    assert vector["ACDEFGHIKLMNPQRSTVWY".index("K")] == pytest.approx(2 / 6, abs=1e-6)


def test_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="fixed transform"):
        get_spec(EncoderChoice(name="composition-rna", random_seed=1))
