"""A bundle.json that was edited: an error that names it, whatever it says of its encoders."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from isoformer.embeddings.key import encoder_key
from isoformer.encoders.registry import EncoderChoice, get_spec
from isoformer.errors import IsoformerError
from isoformer.model import IsoFormer, ModelConfig, save_model
from isoformer.predict.bundle import load_bundle

CHOICE = EncoderChoice(name="composition-rna")


def write_bundle(folder: Path, **made: Any) -> None:
    spec = get_spec(CHOICE)
    config = ModelConfig(modalities=("rna",), fusion="concat", width=4, heads=1)
    save_model(IsoFormer(config, {"rna": spec.width}, ["Liver"]), folder / "model.safetensors")
    weights = (folder / "model.safetensors").read_bytes()
    listed = {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    usual = {
        "key": encoder_key(spec, "none", "pooled", "f16"), "modality": "rna", "weights_digest": "none",
        "resolution": "pooled", "dtype": "f16", "spec": asdict(spec),
    }  # fmt: skip
    described = {
        "format": "isoformer-bundle-1", "target_names": ["Liver"], "origin": {},
        "policy": {
            "dna_window_bases": 16, "rna_max_bases": 100, "max_unknown_fraction": 0.5, "internal_tga": "stop",
            "broken_cds": "quarantine",
        },
        "encoders": {"rna": {"made": {**usual, **made}, "choice": {"name": CHOICE.name}, "folder": None}},
        "files": {"model.safetensors": listed},
    }  # fmt: skip
    (folder / "bundle.json").write_text(json.dumps(described))


def test_the_bundle_loads_as_it_was_written(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    assert load_bundle(tmp_path).model.target_names == ("Liver",)


SPEC = asdict(get_spec(CHOICE))


@pytest.mark.parametrize(
    "made",
    [
        {"resolution": "x"},
        {"key": "another"},
        {"spec": {}},
        {"spec": {**SPEC, "max_tokens": 5}},
        {"spec": {**SPEC, "identity": 3}},
        {"spec": {**SPEC, "name": "no-such"}},
        {"spec": {**SPEC, "hidden_states": "x"}},
        {"spec": {**SPEC, "identity": {"layer": 3}}},
    ],
)
def test_an_encoder_that_is_not_found_names_the_bundle(made: dict[str, Any], tmp_path: Path) -> None:
    write_bundle(tmp_path, **made)
    with pytest.raises(IsoformerError, match=r"bundle\.json: "):
        load_bundle(tmp_path)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_mapping_is_no_bundle(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_bytes(data)
    with pytest.raises(IsoformerError, match=r"bundle\.json: not a bundle"):
        load_bundle(tmp_path)
