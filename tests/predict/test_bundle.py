"""Bundles: the same model bit for bit, from a folder without code, or a clear refusal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoformer.embeddings.config import EncoderJob
from isoformer.errors import ConfigError, EncoderError, FingerprintError, InputError, StorageError
from isoformer.predict.bundle import BUNDLE_FILE, load_bundle, read_bundle, save_bundle
from isoformer.sequence_model import SequenceModel
from predict.test_sequence_model import write_esm2
from predict.trained import MODEL, trained_root, transcripts_of


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root whose proteins are read by a shipped encoder and one in a folder of the user's."""
    work = tmp_path_factory.mktemp("bundles")
    jobs = (
        EncoderJob(name="ntv2-tiny-rna", max_tokens=64, resolution="bins:4"),
        EncoderJob(name="esm2", weights=write_esm2(work / "esm2")),
    )
    trained_root(work / "root", jobs, MODEL.edited(modalities=("rna", "protein")))
    return work


@pytest.fixture
def bundle(work: Path, tmp_path: Path) -> Path:
    return save_bundle(SequenceModel.from_run(str(work / "root"), "one"), tmp_path / "bundle")


@pytest.mark.parametrize("with_weights", [True, False])
def test_the_round_trip_is_bit_exact(work: Path, tmp_path: Path, with_weights: bool) -> None:
    model = SequenceModel.from_run(str(work / "root"), "one")
    folder = save_bundle(model, tmp_path / "made/bundle", with_weights=with_weights)
    moved = folder.rename(tmp_path / "elsewhere")
    again = SequenceModel.open(str(moved))
    transcripts = transcripts_of(work / "root")
    np.testing.assert_array_equal(again.predict(transcripts), model.predict(transcripts))
    assert again.fingerprint == model.fingerprint
    assert (again.policy, again.origin, again.target_names) == (
        model.policy,
        model.origin,
        model.target_names,
    )
    again_saved = save_bundle(again, tmp_path / "again", with_weights=with_weights)
    files = {path.relative_to(moved).as_posix() for path in moved.rglob("*") if path.is_file()}
    assert {Path(name).suffix for name in files} == {".json", ".safetensors"}
    assert len(files) == (6 if with_weights else 2)
    for name in files - {BUNDLE_FILE}:
        assert (again_saved / name).read_bytes() == (moved / name).read_bytes()


def test_with_weights_it_needs_nothing_beside_it(work: Path, tmp_path: Path) -> None:
    model = SequenceModel.from_run(str(work / "root"), "one")
    whole = save_bundle(model, tmp_path / "whole", with_weights=True)
    bare = save_bundle(model, tmp_path / "bare")
    transcripts = transcripts_of(work / "root")[:4]
    expected = model.predict(transcripts)
    hidden = (work / "esm2").rename(work / "hidden")
    try:
        np.testing.assert_array_equal(load_bundle(whole).predict(transcripts), expected)
        with pytest.raises(EncoderError, match="protein embeddings esm2"):
            load_bundle(bare)
    finally:
        hidden.rename(work / "esm2")


def test_what_is_damaged_is_named(bundle: Path) -> None:
    weights = bundle / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(FingerprintError, match=r"model.safetensors: has sha256 .*export it again"):
        load_bundle(bundle)
    weights.unlink()
    with pytest.raises(FingerprintError, match=r"bundle.json lists it, but it is not there"):
        load_bundle(bundle)


def test_other_weights_of_an_encoder_are_refused(work: Path, tmp_path: Path) -> None:
    model = SequenceModel.from_run(str(work / "root"), "one")
    bundle = save_bundle(model, tmp_path / "bundle", with_weights=True)
    weights = bundle / "encoders/protein/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(FingerprintError, match=r"encoders/protein/model.safetensors: has sha256"):
        load_bundle(bundle)


def edited(bundle: Path, **changes: Any) -> Path:
    described = json.loads((bundle / BUNDLE_FILE).read_text()) | changes
    (bundle / BUNDLE_FILE).write_text(json.dumps(described))
    return bundle


def test_what_is_no_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a bundle: there is no bundle.json"):
        load_bundle(tmp_path)
    with pytest.raises(ConfigError, match=r"bundle.json: format: Input should be 'isoformer-bundle-1'"):
        read_bundle(edited(bundle, format="isoformer-bundle-9"))
    (bundle / BUNDLE_FILE).write_text("[]")
    with pytest.raises(InputError, match="must be a mapping, got list"):
        read_bundle(bundle)
    (bundle / BUNDLE_FILE).write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        read_bundle(bundle)


def test_a_path_that_leads_outside_is_refused(bundle: Path) -> None:
    files = json.loads((bundle / BUNDLE_FILE).read_text())["files"]
    with pytest.raises(InputError, match=r"names a file outside of the bundle: got '../secret'"):
        read_bundle(edited(bundle, files={**files, "../secret": files["model.safetensors"]}))


def test_targets_and_encoders_must_agree(bundle: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    with pytest.raises(FingerprintError, match="predicts other targets"):
        load_bundle(edited(bundle, target_names=["Liver", "Skin"]))
    with pytest.raises(InputError, match="names no encoder"):
        load_bundle(edited(other, encoders={}))


def test_nothing_is_overwritten(bundle: Path, work: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in bundle.rglob("*")}
    with pytest.raises(StorageError, match="is there already"):
        save_bundle(SequenceModel.from_run(str(work / "root"), "one"), bundle)
    assert {path: path.stat().st_mtime_ns for path in bundle.rglob("*")} == before
    assert not list(bundle.parent.glob(".writing-*"))
