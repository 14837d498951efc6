"""The promises every encoder keeps. A new encoder's test is a subclass that names its choice."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from isoformer.encoders.registry import EncoderChoice, get_spec, load_encoder, load_tokenizer, weights_digest
from isoformer.encoders.resolution import reduce
from isoformer.encoders.spec import Encoder, EncoderSpec, LayeredEncoder, Tokenized, Tokenizer, pack
from isoformer.errors import EncoderError

LETTERS = {"dna": "ACGT", "rna": "ACGU", "protein": "ACDEFGHIKLMNPQRSTVWY"}


class EncoderContract:
    """Inherit and set `choice` (a fixture, where weights must be made first)."""

    tolerance = 1e-5
    lengths: tuple[int, ...] = (1, 2, 7, 30, 61, 127, 200)
    probe_length = 60

    @pytest.fixture
    def choice(self) -> EncoderChoice:
        raise NotImplementedError

    @pytest.fixture
    def spec(self, choice: EncoderChoice) -> EncoderSpec:
        return get_spec(choice)

    @pytest.fixture
    def tokenizer(self, choice: EncoderChoice) -> Tokenizer:
        return load_tokenizer(choice)

    @pytest.fixture
    def encoder(self, choice: EncoderChoice) -> Encoder:
        return load_encoder(choice, "cpu")

    @pytest.fixture
    def sequences(self, spec: EncoderSpec) -> list[str]:
        return [random_sequence(spec, length, seed) for seed, length in enumerate(self.lengths)]

    def test_alone_in_a_crowd_and_permuted(
        self, encoder: Encoder, tokenizer: Tokenizer, sequences: list[str]
    ) -> None:
        tokens = [tokenizer(sequence) for sequence in sequences]
        alone = [embed(encoder, [one])[0] for one in tokens]
        crowd = embed(encoder, tokens)
        order = np.random.default_rng(0).permutation(len(tokens))
        permuted = embed(encoder, [tokens[i] for i in order])
        for i, expected in enumerate(alone):
            np.testing.assert_allclose(crowd[i], expected, rtol=self.tolerance, atol=self.tolerance)
            back = permuted[int(np.flatnonzero(order == i)[0])]
            np.testing.assert_allclose(back, expected, rtol=self.tolerance, atol=self.tolerance)

    @pytest.mark.parametrize("sequences_at_once", [2, 3])
    def test_any_budget(
        self, encoder: Encoder, tokenizer: Tokenizer, sequences: list[str], sequences_at_once: int
    ) -> None:
        tokens = [tokenizer(sequence) for sequence in sequences]
        whole = embed(encoder, tokens)
        parts: list[NDArray[np.float32]] = []
        for start in range(0, len(tokens), sequences_at_once):
            parts += embed(encoder, tokens[start : start + sequences_at_once])
        for got, expected in zip(parts, whole, strict=True):
            np.testing.assert_allclose(got, expected, rtol=self.tolerance, atol=self.tolerance)

    def test_pooled_is_the_mean_of_the_positions_and_of_nothing_else(
        self, encoder: Encoder, tokenizer: Tokenizer, sequences: list[str], spec: EncoderSpec
    ) -> None:
        packed = pack([tokenizer(sequence) for sequence in sequences])
        encoded = encoder.encode(packed)
        assert encoded.hidden_PD.shape == (encoded.offsets[-1], spec.width)
        assert len(encoded.offsets) == len(sequences) + 1
        for all_positions, pooled in zip(reduce(encoded, "tokens"), reduce(encoded, "pooled"), strict=True):
            np.testing.assert_allclose(pooled[0], all_positions.mean(axis=0), rtol=1e-4, atol=1e-5)

    def test_case_and_u_or_t_change_nothing(self, tokenizer: Tokenizer, sequences: list[str]) -> None:
        for sequence in sequences:
            expected = tokenizer(sequence).token_ids
            assert np.array_equal(tokenizer(sequence.lower()).token_ids, expected)
        if "U" in LETTERS["rna"] and set("".join(sequences)) <= set("ACGU"):
            swapped = [sequence.replace("U", "T") for sequence in sequences]
            for sequence, other in zip(sequences, swapped, strict=True):
                assert np.array_equal(tokenizer(sequence).token_ids, tokenizer(other).token_ids)

    def test_ambiguous_letters_are_counted_and_give_finite_vectors(
        self, encoder: Encoder, tokenizer: Tokenizer, spec: EncoderSpec
    ) -> None:
        sequence = random_sequence(spec, self.probe_length, 5)
        spoilt = sequence[:20] + "?" * 5 + sequence[25:]
        tokens = tokenizer(spoilt)
        reason = "masked_residues" if spec.modality == "protein" else "ambiguous_bases"
        assert tokens.counts[reason] == 5
        assert np.isfinite(embed(encoder, [tokens])[0]).all()
        assert reason not in tokenizer(sequence).counts

    @pytest.mark.parametrize("sequence", ["", "????", "NNNNNNNN"])
    def test_no_valid_letter_is_an_error(
        self, tokenizer: Tokenizer, spec: EncoderSpec, sequence: str
    ) -> None:
        if spec.modality == "protein":
            sequence = sequence.replace("N", "X")
        with pytest.raises(EncoderError, match="no valid letter"):
            tokenizer(sequence)

    def test_long_sequences_are_cropped_by_the_stated_policy(
        self, tokenizer: Tokenizer, spec: EncoderSpec
    ) -> None:
        letters = LETTERS[spec.modality]
        long = random_sequence(spec, int(spec.max_tokens * spec.letters_per_token) + 500, 9)
        tokens = tokenizer(long)
        assert len(tokens) <= spec.max_tokens
        reason = "cropped_residues" if spec.modality == "protein" else "cropped_bases"
        dropped = tokens.counts[reason]
        assert dropped >= 500
        centre = len(long) // 2 - (len(long) - dropped) // 2
        start = {"dna": centre, "rna": dropped, "protein": 0}[spec.modality]
        kept = long[start : start + len(long) - dropped]
        assert np.array_equal(tokenizer(kept).token_ids, tokens.token_ids)
        assert set(kept) <= set(letters)

    def test_the_spec_and_the_encoder_agree(
        self, encoder: Encoder, spec: EncoderSpec, choice: EncoderChoice
    ) -> None:
        assert encoder.spec == spec
        assert encoder.weights_digest == weights_digest(choice)
        assert spec.identity["code"] >= 1
        assert isinstance(encoder, LayeredEncoder) == bool(spec.hidden_states)


def embed(encoder: Encoder, tokens: list[Tokenized]) -> list[NDArray[np.float32]]:
    """All positions of each sequence of one pack."""
    return reduce(encoder.encode(pack(tokens)), "tokens")


def random_sequence(spec: EncoderSpec, length: int, seed: int) -> str:
    """A sequence of valid letters of the encoder's modality."""
    rng = np.random.default_rng(seed)
    return "".join(rng.choice(list(LETTERS[spec.modality]), size=length))
