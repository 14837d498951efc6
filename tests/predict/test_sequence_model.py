"""A model on sequences predicts what it predicts on the cached embeddings of the same sequences."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.tiny import ESM2_CONFIG, write_folder
from isoformer.embeddings.config import EncoderJob
from isoformer.encoders.packed_transformer import random_transformer
from isoformer.encoders.registry import EncoderChoice
from isoformer.encoders.transformer_config import transformer_config
from isoformer.errors import EncoderError, FingerprintError, InputError, StorageError
from isoformer.fusion import Tokens
from isoformer.manifest import read_manifest
from isoformer.model import EncoderInside
from isoformer.predict.bundle import save_bundle
from isoformer.sequence_model import SequenceModel, TranscriptSequences, policy_of
from isoformer.storage import open_storage
from isoformer.training.batches import BatchFeed
from isoformer.training.config import TrainConfig
from isoformer.training.data import load_dataset
from isoformer.training.runs import RunFolder
from predict.trained import MODEL, cached_predictions, train_run, trained_root, transcripts_of

TOLERANCE = 1e-4
"""Of natural log(1 + TPM). An encoder's float32 states depend in the last bits on what shares their pack, and
rounding to float16 can make one step of 2**-11 (5e-4, relative) of that in a single value; a prediction sums
hundreds of them."""


def write_esm2(folder: Path) -> str:
    """A small ESM-2 with weights of its own."""
    config = transformer_config(ESM2_CONFIG, gated_feed_forward=False, file="made")
    state = {f"esm.{key}": tensor for key, tensor in random_transformer(config, 3).state_dict().items()}
    return str(write_folder(folder, ESM2_CONFIG, state))


@pytest.fixture(scope="session")
def transformers_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoders with every option that a key can hold: layers, limits, windows, random weights, a folder's."""
    folder = tmp_path_factory.mktemp("transformers")
    jobs = (
        EncoderJob(name="ntv2-tiny-dna", max_tokens=40, layer=2, average_layers=2, resolution="bins:4"),
        EncoderJob(name="ntv2-tiny-rna", random_seed=5, max_tokens=64, resolution="cls"),
        EncoderJob(
            name="esm2",
            weights=write_esm2(folder / "esm2"),
            max_tokens=48,
            long_sequences="windows",
            overlap_tokens=8,
            resolution="tokens",
        ),
    )
    return trained_root(folder / "root", jobs)


def shuffled(count: int) -> list[int]:
    order = list(range(count))
    random.Random(0).shuffle(order)
    return order


@pytest.mark.parametrize("which", ["root", "transformers_root"])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_it_predicts_what_the_cached_embeddings_give(
    which: str, batch_size: int, request: pytest.FixtureRequest
) -> None:
    root: Path = request.getfixturevalue(which)
    transcripts, expected = transcripts_of(root), cached_predictions(root)
    model = SequenceModel.from_run(str(root), "one")
    order = shuffled(len(transcripts))
    predicted = model.predict([transcripts[place] for place in order], batch_size=batch_size)
    assert expected.std() > 0.1
    np.testing.assert_allclose(predicted, expected[order], atol=TOLERANCE, rtol=0)
    assert model.target_names == ("Liver", "Brain")


@pytest.mark.parametrize("which", ["root", "transformers_root"])
def test_its_tokens_are_the_cached_embeddings(which: str, request: pytest.FixtureRequest) -> None:
    root: Path = request.getfixturevalue(which)
    transcripts = transcripts_of(root)
    data = load_dataset(str(root), RunFolder(open_storage(root), "one").settings().train.keys)
    cached = BatchFeed(data, data.modalities, torch.device("cpu")).batch(np.arange(len(data))).tokens
    found = SequenceModel.from_run(str(root), "one").tokens(transcripts)
    for modality in data.modalities:
        ours, theirs = found[modality], cached[modality]
        assert isinstance(ours, Tokens) and isinstance(theirs, Tokens)
        assert torch.equal(ours.is_token_BL, theirs.is_token_BL)
        assert torch.equal(ours.hidden_BLD, ours.hidden_BLD.half().float())  # rounded as it is stored
        torch.testing.assert_close(ours.hidden_BLD, theirs.hidden_BLD, rtol=2**-10, atol=1e-4)


def test_options_come_back_from_the_key(transformers_root: Path) -> None:
    model = SequenceModel.from_run(str(transformers_root), "one")
    dna, rna, protein = (model.encoders[m].choice for m in ("dna", "rna", "protein"))
    assert (dna.layer, dna.average_layers, dna.max_tokens, dna.weights) == (2, 2, 40, None)
    assert (rna.random_seed, rna.max_tokens) == (5, 64)
    assert (protein.long_sequences, protein.overlap_tokens, protein.max_tokens) == ("windows", 8, 48)


def test_an_encoder_inside_the_model_reads_tokens(root: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(root, tmp_path / "root"))
    keys = RunFolder(open_storage(root), "one").settings().train.keys
    choice = EncoderChoice(name="esm2", weights=write_esm2(tmp_path / "esm2"))
    inside = EncoderInside(encoder=choice, resolution="bins:4")
    config = MODEL.edited(encoders={"protein": inside})
    outside = {modality: keys[modality] for modality in ("dna", "rna")}
    train_run(root, TrainConfig(keys=outside, model=config, epochs=2, batch_size=8), "joint")
    transcripts, expected = transcripts_of(root), cached_predictions(root, "joint")
    (tmp_path / "esm2/model.safetensors").unlink()
    model = SequenceModel.from_run(str(root), "joint")
    assert set(model.encoders) == {"dna", "rna"}
    predicted = model.predict(transcripts, batch_size=5)
    np.testing.assert_allclose(predicted, expected, atol=TOLERANCE, rtol=0)
    again = SequenceModel.open(str(save_bundle(model, tmp_path / "bundle")))
    np.testing.assert_array_equal(again.predict(transcripts, batch_size=5), predicted)
    without = [replace(transcript, protein=None) for transcript in transcripts]
    assert np.isfinite(model.predict(without)).all()


def test_what_cannot_be_read_is_said(model: SequenceModel, root: Path) -> None:
    whole = transcripts_of(root)[2]
    batch = [
        whole,
        replace(whole, dna="ACGT" * 100),
        TranscriptSequences("x", protein="XXX"),
        TranscriptSequences("none"),
        TranscriptSequences("rna", rna="ACGT"),
    ]
    predicted, read = model.predict_read(batch)
    assert np.isfinite(predicted).all(axis=1).tolist() == [True, True, False, False, True]
    assert read.unusable == [
        {}, {"dna": "window_too_small"}, {"protein": "no_valid_letter"}, {}, {},
    ]  # fmt: skip
    assert read.read == [("dna", "rna", "protein"), ("rna", "protein"), (), (), ("rna",)]
    assert model.predict([]).shape == (0, 2)


def test_other_weights_than_the_embeddings_were_made_with_are_refused(tmp_path: Path) -> None:
    folder = write_esm2(tmp_path / "esm2")
    root = trained_root(
        tmp_path / "root", [EncoderJob(name="esm2", weights=folder)], MODEL.edited(modalities=("protein",))
    )
    SequenceModel.from_run(str(root), "one")
    weights = Path(folder, "model.safetensors")
    config = transformer_config(ESM2_CONFIG, gated_feed_forward=False, file="made")
    state = {f"esm.{key}": tensor for key, tensor in random_transformer(config, 4).state_dict().items()}
    write_folder(Path(folder), ESM2_CONFIG, state)
    with pytest.raises(FingerprintError, match=r"encoder esm2 has weights of digest .* made with"):
        SequenceModel.from_run(str(root), "one")
    weights.unlink()
    with pytest.raises(EncoderError, match="esm2"):
        SequenceModel.from_run(str(root), "one")


def test_code_that_gives_other_values_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isoformer.encoders.composition.CODE_VERSION", 2)
    with pytest.raises(FingerprintError, match="its code or options have changed since; embed again"):
        SequenceModel.from_run(str(root), "one")


def test_addresses(root: Path, tmp_path: Path) -> None:
    model = SequenceModel.open(f"{root}/runs/one")
    assert model.origin.run == "one"
    with pytest.raises(InputError, match=r"not a model: got .*allowed: <root>/runs/<run>"):
        SequenceModel.open(str(tmp_path))
    with pytest.raises(StorageError, match=r"no such run; there are: .*one"):
        SequenceModel.open(f"{root}/runs/two")


def test_preparation_comes_from_the_manifest(root: Path) -> None:
    manifest = read_manifest(open_storage(root))
    policy = policy_of(manifest.model_copy(update={"config": {"rna_max_bases": 100}}))
    assert (policy.rna_max_bases, policy.dna_window_bases, policy.broken_cds) == (100, 8192, "quarantine")
