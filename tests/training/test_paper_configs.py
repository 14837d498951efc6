"""The paper's runs as configuration files: each is valid, is what its row says, and differs in that only."""

from __future__ import annotations

from pathlib import Path

import pytest

from isoformer.encoders.registry import get_spec
from isoformer.model_config import ModelConfig
from isoformer.settings import Settings, load_settings

FILES = sorted((Path(__file__).resolve().parents[2] / "jobs/configs/paper").glob("*.yaml"))
ROWS = {
    "isoformer": ("cross_attention", ("dna", "rna", "protein"), ()),
    "dna-nt": ("cross_attention", ("dna",), ()),
    "rna-nt": ("cross_attention", ("rna",), ()),
    "protein-esm2": ("cross_attention", ("protein",), ()),
    "dna-rna-nt": ("cross_attention", ("dna", "rna"), ()),
    "dna-rna-protein-nt": ("cross_attention", ("dna", "rna", "protein"), ()),
    "perceiver-per-modality": ("perceiver_per_modality", ("dna", "rna", "protein"), ()),
    "perceiver-shared": ("perceiver_shared", ("dna", "rna", "protein"), ()),
    "c-abstractor": ("c_abstractor", ("dna", "rna", "protein"), ()),
    "dna-from-scratch": ("cross_attention", ("dna", "rna", "protein"), ("dna",)),
    "rna-from-scratch": ("cross_attention", ("dna", "rna", "protein"), ("rna",)),
    "all-from-scratch": ("cross_attention", ("dna", "rna", "protein"), ("dna", "rna", "protein")),
}


def settings_of(name: str) -> Settings:
    return load_settings(next(path for path in FILES if path.stem == name))


def test_there_is_a_file_for_every_row() -> None:
    assert {path.stem for path in FILES} == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_a_file_is_what_its_row_says(name: str) -> None:
    fusion, modalities, scratch = ROWS[name]
    settings = settings_of(name)
    train, model = settings.train, settings.train.model
    assert settings.run == name
    assert (model.fusion, model.modalities) == (fusion, modalities)
    assert tuple(m for m in modalities if model.encoders[m].regime == "scratch") == scratch
    assert (train.learning_rate, train.batch_size, train.loss, train.weight_decay) == (3e-5, 64, "mse", 0.0)
    assert (train.validation, train.validation_fraction) == ("redraw", 0.05)
    assert (model.width, model.heads, model.standardise_inputs, model.zero_start) == (None, 8, False, False)
    for modality in modalities:
        inside = model.encoders[modality]
        spec = get_spec(inside.encoder)
        assert spec.modality == modality and inside.resolution == "tokens"
    assert settings.train_config() == train  # needs no embeddings
    assert settings.require_prepare().dna_window_bases == 196_608


def test_files_differ_in_their_row_only() -> None:
    alike = []
    for name in ROWS:
        settings = settings_of(name)
        train = settings.train.edited(model=ModelConfig())
        alike.append(settings.edited(run="same", train=train))
    assert all(one == alike[0] for one in alike)


def test_the_dna_encoder_is_enformer_but_for_the_rows_of_the_nucleotide_transformer() -> None:
    for name, (_, modalities, _) in ROWS.items():
        if "dna" in modalities:
            encoder = settings_of(name).train.model.encoders["dna"].encoder.name
            assert encoder == ("ntv2-250m-dna" if name.endswith("-nt") else "enformer")
