"""A bundle: a finished model and all that it needs to read sequences, as a folder of its own.

    bundle.json              what it is: encoders and how their states are reduced, preparation, every file's
                             size and sha256
    model.safetensors        the model, as `save_model` writes it
    encoders/<modality>/     with weights: config.json, tokenizer files and safetensors of each encoder

JSON and safetensors, nothing else: no code and no pickle. Without encoders' weights a bundle is small, and
its encoders are found by name (shipped ones) or where they were. It gives bit for bit what the run gives.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from pydantic import Field

from isoformer.config import FrozenConfig, build
from isoformer.documents import DocumentError, parse_mapping
from isoformer.embeddings.made_with import MadeWith, find_choice
from isoformer.encoders.registry import EncoderChoice
from isoformer.encoders.weights_files import state_file, weights_folder
from isoformer.encoders.weights_manifest import WeightsFile, describe, file_sha256, folder_manifest
from isoformer.errors import ConfigError, EncoderError, FingerprintError, InputError, StorageError
from isoformer.extraction import Policy
from isoformer.model import load_model, save_model
from isoformer.schema import Modality
from isoformer.sequence_model import ModalityEncoder, Origin, SequenceModel

BUNDLE_FILE: Final = "bundle.json"
MODEL_FILE: Final = "model.safetensors"
MLMODEL_FILE: Final = "MLmodel"
TARGET_UNIT: Final = "natural log(1 + TPM)"
MLFLOW_SCHEMES: Final = ("models:/", "runs:/", "mlflow-artifacts:/")
_COPIED: Final = (".json", ".txt", ".model", ".safetensors")


class BundledEncoder(FrozenConfig):
    """One encoder: how the embeddings were made that the model learned from, and where its weights are."""

    made: MadeWith
    choice: EncoderChoice
    folder: str | None = Field(description="inside the bundle; null: the weights are not in it")


class Bundle(FrozenConfig):
    """bundle.json."""

    format: Literal["isoformer-bundle-1"] = "isoformer-bundle-1"
    target_names: tuple[str, ...]
    target_unit: Literal["natural log(1 + TPM)"] = TARGET_UNIT
    origin: Origin
    policy: Policy
    encoders: dict[Modality, BundledEncoder]
    files: dict[str, WeightsFile]


def save_bundle(model: SequenceModel, folder: Path, *, with_weights: bool = False) -> Path:
    """Write the bundle, which appears whole or not at all.

    StorageError where the folder is not empty; EncoderError where, `with_weights`, an encoder's weights are
    not safetensors.
    """
    if (folder.is_dir() and any(folder.iterdir())) or folder.is_file():
        raise StorageError(f"{folder}: is there already; give a folder that is not there, or is empty")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder.parent) as unfinished:
        made = Path(unfinished, "bundle")
        made.mkdir()
        save_model(model.model, made / MODEL_FILE)
        encoders = {m: _bundled(e, m, made, with_weights) for m, e in model.encoders.items()}
        described = Bundle(
            target_names=model.target_names,
            origin=model.origin,
            policy=model.policy,
            encoders=encoders,
            files={path.relative_to(made).as_posix(): describe([path])[path.name] for path in _files(made)},
        )
        text = json.dumps(described.model_dump(mode="json"), indent=1)
        (made / BUNDLE_FILE).write_text(text, encoding="utf-8")
        if folder.is_dir():
            folder.rmdir()
        os.replace(made, folder)
    return folder


def load_bundle(folder: Path, *, device: str = "cpu") -> SequenceModel:
    """The model again; encoders load when they are first needed.

    InputError where the folder is no bundle, FingerprintError where a file is not the one that was saved or
    an encoder's weights are others, EncoderError where they are not found.
    """
    described = read_bundle(folder)
    for name, file in described.files.items():
        _check(folder, name, file)
    model = load_model(folder / MODEL_FILE)
    if model.target_names != described.target_names:
        raise FingerprintError(f"{folder}: {MODEL_FILE} predicts other targets than {BUNDLE_FILE} names")
    lacking = sorted(set(model.config.modalities) - set(model.config.encoders) - set(described.encoders))
    if lacking:
        raise InputError("the bundle names no encoder", file=folder / BUNDLE_FILE, field=lacking[0])
    encoders = {m: _encoder(folder, bundled, device) for m, bundled in described.encoders.items()}
    return SequenceModel(model.to(device).eval(), encoders, described.policy, described.origin, device)


def read_bundle(folder: Path) -> Bundle:
    """bundle.json, checked. InputError where the folder is no bundle, ConfigError for one of another kind."""
    path = folder / BUNDLE_FILE
    if not path.is_file():
        raise InputError(f"not a bundle: there is no {BUNDLE_FILE}", file=folder)
    try:
        data = parse_mapping(path.read_bytes())
    except DocumentError as error:
        raise InputError(f"not a bundle: {error}", file=path) from None
    described = build(Bundle, data, origin=str(path))
    for name in [*described.files, *(e.folder for e in described.encoders.values() if e.folder)]:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise InputError("names a file outside of the bundle", file=path, value=name)
    return described


def find_bundle(source: str, *, tracking_uri: str | None = None) -> Path | None:
    """The bundle's folder where `source` is one, holds one as an MLflow model does, or is an MLflow address;
    None where it is something else.
    """
    folder = Path(source.removeprefix("file://")).expanduser()
    if source.startswith(MLFLOW_SCHEMES):
        folder = _downloaded(source, tracking_uri)
        if not (folder / MLMODEL_FILE).is_file():
            return folder
    if (folder / MLMODEL_FILE).is_file():
        return _bundle_inside(folder)
    return folder if (folder / BUNDLE_FILE).is_file() else None


def _bundle_inside(folder: Path) -> Path:
    """An MLflow model's artefact. InputError where it is the model of something else."""
    inside = folder / "artifacts" / "bundle"
    if not (inside / BUNDLE_FILE).is_file():
        raise InputError("an MLflow model, but not one that `isoformer export` made", file=folder)
    return inside


def _downloaded(source: str, tracking_uri: str | None) -> Path:
    """A local copy of an MLflow model, for as long as this machine keeps its temporary files."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    from isoformer.predict.mlflow_place import mlflow_at

    try:
        with mlflow_at(tracking_uri):
            return Path(download_artifacts(artifact_uri=source))
    except (MlflowException, OSError) as error:
        raise StorageError(f"{source}: cannot be had from MLflow: {str(error).splitlines()[0]}") from None


def _bundled(encoder: ModalityEncoder, modality: Modality, made: Path, with_weights: bool) -> BundledEncoder:
    without = encoder.choice.random_seed is not None or encoder.spec.trained == "none"
    if not with_weights or (without and encoder.choice.weights is None):
        return BundledEncoder(made=encoder.made, choice=encoder.choice, folder=None)
    inside = f"encoders/{modality}"
    _copy_weights(encoder.choice, made / inside)
    return BundledEncoder(made=encoder.made, choice=encoder.choice, folder=inside)


def _copy_weights(choice: EncoderChoice, target: Path) -> None:
    source = weights_folder(choice) if _is_folder(choice) else None
    if source is None or (choice.random_seed is None and "safetensors" not in state_file(source).name):
        raise EncoderError(
            f"encoder {choice.name}: its weights {choice.weights} are not safetensors with a config.json, "
            "and nothing else is put into a bundle: export without weights, and keep the file beside it"
        )
    manifest = folder_manifest(source)
    names = [*manifest.files, "manifest.json"] if manifest else [
        path.name for path in sorted(source.iterdir()) if path.suffix in _COPIED
    ]  # fmt: skip
    target.mkdir(parents=True)
    for name in names:
        shutil.copyfile(source / name, target / name)


def _is_folder(choice: EncoderChoice) -> bool:
    """Shipped weights and those in object storage are folders, unless a single file is named."""
    return choice.weights is None or Path(choice.weights).suffix not in (".pth", ".h5", ".npz")


def _encoder(folder: Path, bundled: BundledEncoder, device: str) -> ModalityEncoder:
    places = [str(folder / bundled.folder)] if bundled.folder else []
    if bundled.choice.weights is not None:
        places.append(bundled.choice.weights)
    try:
        return ModalityEncoder.of(bundled.made, *find_choice(bundled.made, folders=places), device)
    except (ConfigError, EncoderError, FingerprintError) as error:
        raise type(error)(f"{folder / BUNDLE_FILE}: {error}") from None


def _check(folder: Path, name: str, file: WeightsFile) -> None:
    path = folder / name
    if not path.is_file():
        raise FingerprintError(f"{path}: {BUNDLE_FILE} lists it, but it is not there")
    if (found := file_sha256(path)) != file.sha256:
        raise FingerprintError(
            f"{path}: has sha256 {found}, but {BUNDLE_FILE} lists {file.sha256}: it was changed or damaged; "
            "export it again"
        )


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
