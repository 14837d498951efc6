"""The whole model: configuration errors, statistics, the start at zero, a round trip through a file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from isoformer.config import build
from isoformer.errors import ConfigError, InputError
from isoformer.fusion import Tokens
from isoformer.model import IsoFormer, ModelConfig, load_model, save_model
from isoformer.training.batches import BatchFeed
from isoformer.training.statistics import train_statistics
from made_dataset import WIDTHS, made_dataset


def batch_of(data, rows=range(8)):
    return BatchFeed(data, data.modalities, torch.device("cpu")).batch(np.array(rows))


def test_unknown_fusion_and_keys_are_named_with_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"fusion.*cross_attention, concat"):
        build(ModelConfig, {"fusion": "attention"})
    with pytest.raises(ConfigError, match="did you mean 'heads'"):
        build(ModelConfig, {"head": 4})
    with pytest.raises(ConfigError, match="modalities"):
        build(ModelConfig, {"modalities": ["rna", "rna"]})


def test_heads_and_width_are_both_named() -> None:
    with pytest.raises(ConfigError, match="heads 5 does not divide width 64"):
        build(ModelConfig, {"width": 64, "heads": 5})
    with pytest.raises(ConfigError, match="8 heads do not divide the width 12"):
        IsoFormer(ModelConfig(heads=8), {"dna": 16, "rna": 12, "protein": 16}, ["a"])


def test_modalities_come_in_one_order() -> None:
    assert ModelConfig(modalities=("protein", "dna")).modalities == ("dna", "protein")


def test_a_zero_start_predicts_the_tissue_means() -> None:
    data = made_dataset()
    model = IsoFormer(ModelConfig(heads=4), WIDTHS, data.target_names)
    model.set_statistics(*train_statistics(data, model.config))
    predicted = model.eval().predict(batch_of(data).tokens)
    known = np.where(data.target_mask, data.targets, np.nan)[data.rows("train")]
    np.testing.assert_allclose(
        predicted.detach().numpy(), np.nanmean(known, axis=0)[None].repeat(8, 0), rtol=1e-5
    )


def test_inputs_are_standardised_over_train_positions_only() -> None:
    data = made_dataset()
    states, rows = data.states["rna"], data.rows("train")
    _, inputs = train_statistics(data, ModelConfig())
    values = np.concatenate(
        [states.flat_PD[states.offsets[s] : states.offsets[s + 1]] for s in states.sequence_of_N[rows]]
    ).astype(np.float64)
    np.testing.assert_allclose(inputs["rna"].mean, values.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(inputs["rna"].sd, values.std(axis=0), rtol=1e-5)
    assert train_statistics(data, ModelConfig(standardise_inputs=False))[1] == {}


def test_a_constant_feature_and_a_constant_tissue_stay_finite() -> None:
    data = made_dataset()
    data.states["dna"].flat_PD[:, 0] = 3
    data.targets[:, 1] = 2
    targets, inputs = train_statistics(data, ModelConfig())
    assert inputs["dna"].sd[0] == 1 and targets.sd[1] == 1


def test_a_tissue_without_a_train_value_is_named() -> None:
    data = made_dataset()
    data.target_mask[data.rows("train"), 2] = False
    with pytest.raises(InputError, match="tissue 2"):
        train_statistics(data, ModelConfig())


@pytest.mark.parametrize("fusion", ["cross_attention", "concat", "perceiver_shared"])
def test_a_model_survives_its_file(fusion: str, tmp_path: Path) -> None:
    data = made_dataset()
    model = IsoFormer(
        ModelConfig(fusion=fusion, width=8, heads=2, zero_start=False), WIDTHS, data.target_names
    )
    model.set_statistics(*train_statistics(data, model.config))
    save_model(model, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.config == model.config and loaded.target_names == data.target_names
    torch.testing.assert_close(
        loaded.predict(batch_of(data).tokens), model.eval().predict(batch_of(data).tokens), rtol=0, atol=0
    )


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not at all")
    with pytest.raises(InputError, match=r"model\.safetensors: not a saved model"):
        load_model(tmp_path / "model.safetensors")


def test_a_sample_without_any_modality_gets_the_heads_bias() -> None:
    model = IsoFormer(ModelConfig(heads=4, zero_start=False), WIDTHS, ["a", "b"]).eval()
    empty = {m: Tokens(torch.zeros(1, 1, w), torch.zeros(1, 1, dtype=torch.bool)) for m, w in WIDTHS.items()}
    torch.testing.assert_close(model(empty)[0], model.head.bias)


def test_configuration_imports_without_torch() -> None:
    code = "import sys, json, isoformer.training.config; print(json.dumps('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False
