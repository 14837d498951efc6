"""From an embedding dataset's manifest back to the encoder, for every family and option."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from encoders.tiny import write_library_folder
from isoformer.embeddings.key import encoder_key
from isoformer.embeddings.made_with import MadeWith, find_choice
from isoformer.encoders.catalogue import PUBLISHED
from isoformer.encoders.registry import EncoderChoice, get_spec, weights_digest
from isoformer.encoders.weights_manifest import WeightsManifest, describe
from isoformer.encoders.weights_store import located, publish, use
from isoformer.errors import EncoderError, FingerprintError
from isoformer.storage import LocalStorage

CHOICES: list[dict[str, Any]] = [
    {"name": "composition-dna"},
    {"name": "composition-rna", "long_sequences": "right"},
    {"name": "ntv2-tiny-dna", "layer": 1, "average_layers": 2, "max_tokens": 100},
    {"name": "ntv2-tiny-rna", "long_sequences": "windows", "overlap_tokens": 10},
    {"name": "esm2-tiny", "precision": "bf16", "layer": 0},
    {"name": "esm2-tiny", "long_sequences": "left"},
    {"name": "esm2-8m", "random_seed": 3, "layer": 4},
    {"name": "rnafm", "random_seed": 1},
    {"name": "enformer", "random_seed": 2, "precision": "bf16"},
    {"name": "borzoi", "random_seed": 2},
    {"name": "xpresso", "random_seed": 0},
    {"name": "unirep-64", "random_seed": 0, "long_sequences": "left"},
    {"name": "mxfold2", "random_seed": 0},
]


def made_with(choice: EncoderChoice) -> MadeWith:
    """What a manifest says, after it was JSON."""
    spec, digest = get_spec(choice), weights_digest(choice)
    key = encoder_key(spec, digest, "bins:4", "f16")
    stated = {"key": key, "modality": spec.modality, "spec": asdict(spec), "weights_digest": digest}
    return MadeWith.model_validate(json.loads(json.dumps({**stated, "resolution": "bins:4", "dtype": "f16"})))


@pytest.mark.parametrize("options", CHOICES, ids=lambda options: "-".join(map(str, options.values())))
def test_the_choice_comes_back(options: dict[str, Any]) -> None:
    asked = EncoderChoice(**options)
    choice, spec = find_choice(made_with(asked))
    assert made_with(choice) == made_with(asked)
    assert spec == get_spec(asked)


@pytest.mark.parametrize(
    "options", [{}, {"layer": 3}, {"layer": 1, "max_tokens": 50, "long_sequences": "left"}]
)
def test_a_library_encoder_comes_back(options: dict[str, Any], tmp_path: Path) -> None:
    folder = write_library_folder(tmp_path / "tiny-esm")
    asked = EncoderChoice(name=f"hf:{folder}", modality="protein", random_seed=2, **options)
    made = made_with(asked)
    found, _ = find_choice(made)
    assert made_with(found).key == made.key
    shutil.rmtree(folder)
    with pytest.raises(EncoderError, match="hf-tiny-esm"):
        find_choice(made)


def pulled(storage: LocalStorage, work: Path, commit: str) -> None:
    """Published weights of esm2-8m under a commit; the tensors' file is a stand-in, nothing reads it."""
    entry = PUBLISHED["esm2-8m"]
    folder = work / commit[:6]
    folder.mkdir(parents=True)
    files = [folder / "config.json", folder / "model.safetensors"]
    files[0].write_text(json.dumps(dict(entry.config)))
    files[1].write_text(f"tensors of {commit}")
    manifest = WeightsManifest(
        repository=entry.hub, commit=commit, licence="MIT", digest=commit * 2, files=describe(files)
    )
    publish(storage, manifest, files)
    use(storage, entry.hub, manifest.version, move=True)


def test_pulled_weights_are_found_by_commit_though_the_root_has_moved_on(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "root")
    pulled(storage, tmp_path, "a" * 40)
    asked = EncoderChoice(name="esm2-8m", layer=3)
    made = made_with(located(asked, storage))
    choice, _ = find_choice(made, storage)
    assert (choice.layer, choice.weights) == (3, located(asked, storage).weights)
    pulled(storage, tmp_path, "b" * 40)
    again, _ = find_choice(made, storage)
    assert again.weights == choice.weights != located(asked, storage).weights
    shutil.rmtree(str(choice.weights))
    with pytest.raises(FingerprintError, match=r"has weights of digest b+ .* were made with a+"):
        find_choice(made, storage)
    with pytest.raises(EncoderError, match="isoformer weights pull esm2-8m"):
        find_choice(made, LocalStorage(tmp_path / "empty"))
    with pytest.raises(EncoderError, match="protein embeddings esm2-8m"):
        find_choice(made)
