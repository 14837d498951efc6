"""The doors of weights and models: files of tensors, folders of the hub, checkpoints, bundles.

Nothing of a file's is ever run (pickles that would make the canary), a name in an index or a bundle never
leads out of its folder, and the tensors that come out are those that the file's own format library reads.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch

from fuzz.door import Door
from fuzz.seeds import DEEP, JSON_WORDS, edited
from fuzz.tensors import HEADERS, TORCH_WORDS, hostile_pickles, plant, safetensors_of, torch_bytes
from isoformer.embeddings.key import encoder_key
from isoformer.encoders.registry import EncoderChoice, get_spec, weights_digest
from isoformer.model import IsoFormer, ModelConfig, load_model, save_model
from isoformer.predict.bundle import find_bundle, load_bundle, read_bundle
from isoformer.training.checkpoint import FitState, Progress, read_checkpoint, write_checkpoint

MADE_FROM = {"fingerprint": "abc"}


def model(data: bytes, folder: Path) -> None:
    """model.safetensors of a run: what is loaded can predict and is written again the same."""
    (folder / "model.safetensors").write_bytes(data)
    found = load_model(folder / "model.safetensors")
    save_model(found, folder / "again.safetensors")
    assert load_model(folder / "again.safetensors").config == found.config


def checkpoint_state(data: bytes, folder: Path) -> None:
    _enter_checkpoint(folder, "state.pt", plant(data, folder))


def checkpoint_weights(data: bytes, folder: Path) -> None:
    _enter_checkpoint(folder, "latest.safetensors", data)


def _enter_checkpoint(folder: Path, name: str, data: bytes) -> None:
    for file, content in {**_checkpoint(), name: data}.items():
        (folder / file).write_bytes(content)
    progress, state = read_checkpoint(folder, MADE_FROM)
    assert (
        isinstance(progress.epoch, int)
        and isinstance(progress.step, int)
        and isinstance(progress.history, list)
    )
    assert all(isinstance(tensor, torch.Tensor) for tensor in [*state.latest.values(), *state.best.values()])
    assert isinstance(state.optimizer, dict)


@cache
def _checkpoint() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        net = _tiny_model()
        state = FitState(net.state_dict(), net.state_dict(), {"state": {}, "param_groups": []})
        write_checkpoint(Path(folder), net, state, Progress(epoch=1, step=2), MADE_FROM)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@cache
def _tiny_model() -> IsoFormer:
    config = ModelConfig(modalities=("rna",), fusion="concat", width=4, heads=1)
    return IsoFormer(config, {"rna": 4}, ["Liver", "Brain"])


def bundle(data: bytes, folder: Path) -> None:
    """bundle.json: every name in it stays inside, and no other file is taken for the one it lists."""
    (folder / "secret.txt").write_text("secret")
    made = folder / "made"
    made.mkdir()
    (made / "model.safetensors").write_bytes(_checkpoint()["model.safetensors"])
    (made / "bundle.json").write_bytes(data)
    assert find_bundle(str(made)) == made
    described = read_bundle(made)
    inside = [*described.files, *(one.folder for one in described.encoders.values() if one.folder)]
    for name in inside:
        assert (made / name).resolve().is_relative_to(made.resolve()), f"{name} is outside"
    assert load_bundle(made).model.target_names == described.target_names


def _bundle_json() -> bytes:
    weights = _checkpoint()["model.safetensors"]
    choice = EncoderChoice(name="composition-rna")
    made = {
        "key": encoder_key(get_spec(choice), weights_digest(choice), "pooled", "f16"),
        "modality": "rna",
        "dtype": "f16",
        "weights_digest": "none",
        "resolution": "pooled",
        "spec": asdict(get_spec(choice)),
    }
    described = {
        "format": "isoformer-bundle-1",
        "target_names": ["Liver", "Brain"],
        "target_unit": "natural log(1 + TPM)",
        "origin": {"run": "r", "fingerprint": "f", "label_provenance": "l"},
        "policy": {
            "dna_window_bases": 16,
            "rna_max_bases": 100,
            "max_unknown_fraction": 0.5,
            "broken_cds": "quarantine",
            "internal_tga": "stop",
        },
        "encoders": {"rna": {"made": made, "choice": {"name": "composition-rna"}, "folder": None}},
        "files": {
            "model.safetensors": {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
        },
    }
    return json.dumps(described).encode()


DOORS = (
    Door(
        "model",
        model,
        (
            _checkpoint()["model.safetensors"],
            *HEADERS,
            safetensors_of({"__metadata__": {"isoformer": "[]"}}),
            safetensors_of({"__metadata__": {"isoformer": "{}"}}),
        ),
        JSON_WORDS,
        ("model.safetensors",),
    ),
    Door(
        "checkpoint state",
        checkpoint_state,
        (
            _checkpoint()["state.pt"],
            *hostile_pickles(),
            torch_bytes([1]),
            torch_bytes({}),
            torch_bytes({"made_from": 3}),
        ),
        TORCH_WORDS,
        ("state.pt", "checkpoint"),
    ),
    Door(
        "checkpoint weights",
        checkpoint_weights,
        (_checkpoint()["latest.safetensors"], *HEADERS),
        JSON_WORDS[:8],
        ("latest.safetensors",),
    ),
    Door(
        "bundle",
        bundle,
        (
            _bundle_json(),
            edited(_bundle_json(), files={"../secret.txt": {"bytes": 6, "sha256": "0"}}),
            b"{}",
            b"[]",
            DEEP,
        ),
        JSON_WORDS,
        ("bundle.json", "made"),
    ),
)
