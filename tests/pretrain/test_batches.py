"""Masking and packing: shares, determinism, and that no special or unknown token is ever chosen."""

from __future__ import annotations

import numpy as np
import pytest

from isoformer.encoders import esm2
from isoformer.encoders import nucleotide_transformer as ntv2
from isoformer.schema import Modality
from isoformer.training.pretrain_batches import (
    Alphabet,
    BatchSource,
    alphabet_of,
    known_stretches,
    letter_counts,
    masked,
    validation_batches,
)

LETTERS = {"dna": "ACGT", "rna": "ACGT", "protein": "ACDEFGHIKLMNPQRSTVWY"}
MODALITIES: list[Modality] = ["dna", "rna", "protein"]


def random_sequences(modality: Modality, lengths: list[int]) -> list[str]:
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(list(LETTERS[modality]), size=length)) for length in lengths]


@pytest.mark.parametrize("modality", MODALITIES)
def test_fifteen_percent_are_chosen_and_treated_as_the_recipe_says(modality: Modality) -> None:
    alphabet = alphabet_of(modality, 512)
    letters_each = 3000 if modality != "protein" else 500
    sequences = random_sequences(modality, [letters_each] * 60)
    tokens = [alphabet.tokens(sequence, None) for sequence in sequences]
    batch = masked(tokens, alphabet, np.random.default_rng(1))
    true_ids = np.concatenate(tokens)
    letters = np.isin(true_ids, alphabet.letter_ids)
    assert len(batch.places) / letters.sum() == pytest.approx(0.15, abs=0.01)
    assert letters[batch.places].all()
    assert np.array_equal(true_ids[batch.places], batch.targets)
    shown = batch.token_ids[batch.places]
    is_mask = shown == alphabet.mask_id
    kept = shown == batch.targets
    assert is_mask.mean() == pytest.approx(0.8, abs=0.02)
    assert kept.mean() == pytest.approx(0.1 + 0.1 / len(alphabet.letter_ids), abs=0.02)
    elsewhere = np.setdiff1d(np.arange(len(true_ids)), batch.places)
    assert np.array_equal(batch.token_ids[elsewhere], true_ids[elsewhere])


def test_unknown_letters_are_never_chosen() -> None:
    for modality, sequence, unknown in (
        ("rna", "ACGTAC" + "N" * 300, ntv2.vocabulary_size(2) - 1),
        ("protein", "MK" + "X" * 300, esm2.Esm2Tokenizer(9)("XM").token_ids[1]),
    ):
        alphabet = alphabet_of(modality, 512)  # type: ignore[arg-type]
        for seed in range(5):
            batch = masked([alphabet.tokens(sequence, None)], alphabet, np.random.default_rng(seed))
            assert unknown not in batch.targets
            assert len(batch.places) >= 1


def test_long_runs_of_unknown_letters_split_a_sequence() -> None:
    sequence = "A" * 70 + "N" * 500 + "C" * 59 + "N" + "G" * 60
    assert known_stretches([sequence], "dna") == ["A" * 70, "G" * 60]
    assert known_stretches(["X" * 50, "M" * 20], "protein") == ["M" * 20]


@pytest.mark.parametrize("modality", MODALITIES)
def test_an_epoch_holds_every_sequence_once_and_batches_repeat(modality: Modality) -> None:
    alphabet = alphabet_of(modality, 64)
    sequences = random_sequences(modality, [60, 500, 90, 300, 61, 800] * 5)
    source = BatchSource(sequences, alphabet, batch_tokens=128, seed=3)
    epoch = source.epoch(0)
    assert sorted(np.concatenate(epoch).tolist()) == list(range(len(sequences)))
    assert not np.array_equal(np.concatenate(epoch), np.concatenate(source.epoch(1)))
    again = BatchSource(sequences, alphabet, batch_tokens=128, seed=3)
    for index, members in enumerate(epoch):
        first, second = source.batch(members, 0, index), again.batch(members, 0, index)
        assert np.array_equal(first.token_ids, second.token_ids)
        assert first.offsets == second.offsets
        assert max(np.diff(first.offsets)) <= 64


def test_dna_is_read_on_both_strands_and_in_every_frame() -> None:
    alphabet = alphabet_of("dna", 64)
    sequence = random_sequences("dna", [300])[0]
    seen = {tuple(alphabet.tokens(sequence, np.random.default_rng(seed)).tolist()) for seed in range(200)}
    assert len(seen) == 12


def test_validation_batches_are_fixed_and_as_long_as_asked() -> None:
    alphabet = alphabet_of("protein", 64)
    sequences = random_sequences("protein", [50] * 40)
    first, again = (
        validation_batches(sequences, alphabet, batch_tokens=200, most_tokens=1000, seed=0) for _ in range(2)
    )
    assert [batch.token_ids.tolist() for batch in first] == [batch.token_ids.tolist() for batch in again]
    assert 1000 <= sum(len(batch.token_ids) for batch in first) <= 1052


def test_letter_counts_leave_special_tokens_out() -> None:
    alphabet: Alphabet = alphabet_of("protein", 64)
    counts = letter_counts(["MMK", "MX"], alphabet, 33)
    assert counts.sum() == 4 + 20
    assert counts[esm2.CLS_ID] == counts[esm2.EOS_ID] == 0
    assert counts[esm2.Esm2Tokenizer(9)("M").token_ids[1]] == 4
