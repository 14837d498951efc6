"""The start of the 6-mer embedding: letters shared are similarity, at any width, and the same for a seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from isoformer.training.pretrain import PretrainConfig, architecture_of
from isoformer.training.pretrain_batches import alphabet_of
from isoformer.training.pretrain_loop import new_model
from isoformer.training.pretrain_start import six_mer_embedding, six_mer_features


def test_features_by_hand() -> None:
    features = six_mer_features()
    assert features.shape == (4100, 24 + 4 + 16 + 64)
    assert features[:4096].mean(axis=0) == pytest.approx(0, abs=1e-12)
    assert features[:4096].std(axis=0) == pytest.approx(1)
    count_of_a = features[:, 24]
    assert count_of_a.argmax() == 0  # AAAAAA comes first
    assert features[0, :4].argmax() == 0  # its first letter is A
    assert features[1, 20:24].argmax() == 1  # AAAAAT: its last letter is T


@pytest.mark.parametrize("width", [16, 128])
def test_six_mers_that_share_letters_lie_together(width: int) -> None:
    rows = six_mer_embedding(width, 0)
    assert rows.shape == (4100, width)
    assert rows.std() == pytest.approx(1, abs=0.01)
    assert np.array_equal(rows, six_mer_embedding(width, 0))
    assert not np.array_equal(rows, six_mer_embedding(width, 1))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    all_a, all_g = unit[0], unit[4095]
    assert unit[1] @ all_a > all_g @ all_a + 0.3


def test_a_new_model_holds_it_and_proteins_start_as_published() -> None:
    for modality, name in (("rna", "a"), ("protein", "b")):
        config = PretrainConfig(name=name, modality=modality, width=16, layers=1, heads=2)  # type: ignore[arg-type]
        architecture, alphabet = architecture_of(config), alphabet_of(config.modality, 32)
        model = new_model(architecture, alphabet, torch.ones(architecture.vocab_size), 0)
        embedding = model.esm.state_dict()["embeddings.word_embeddings.weight"]
        assert float(embedding.std()) == pytest.approx(0.02, rel=0.1)
        if modality == "rna":
            expected = 0.02 * torch.from_numpy(six_mer_embedding(16, 0))
            torch.testing.assert_close(embedding[6:4106], expected)
