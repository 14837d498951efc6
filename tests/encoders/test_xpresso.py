"""Xpresso: an independent numpy forward on a file in the published layout, the contract, and bad files."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from encoders.contract import EncoderContract, random_sequence
from isoformer.encoders.registry import EncoderChoice, get_spec, load_encoder, load_tokenizer
from isoformer.encoders.resolution import reduce
from isoformer.encoders.spec import EncoderSpec, Tokenizer, pack
from isoformer.encoders.xpresso import SHAPES, WINDOW_BASES
from isoformer.errors import ConfigError, EncoderError


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Keras 2 weight file of the published shapes, with random numbers."""
    path = tmp_path_factory.mktemp("xpresso") / "weights.h5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as out:
        for name, shape in SHAPES.items():
            layer = name.split("/")[0]
            out[f"model_weights/{layer}/{name}:0"] = rng.normal(0, 0.2, shape).astype(np.float32)
        out["model_weights/dense_2/dense_2/kernel:0"] = np.zeros((64, 2), np.float32)
    return path


class TestXpresso(EncoderContract):
    lengths = (WINDOW_BASES,) * 3
    probe_length = WINDOW_BASES
    tolerance = 1e-4  # sums of ten thousand values of order ten

    @pytest.fixture
    def choice(self, file: Path) -> EncoderChoice:
        return EncoderChoice(name="xpresso", weights=str(file))

    def test_long_sequences_are_cropped_by_the_stated_policy(
        self, tokenizer: Tokenizer, spec: EncoderSpec
    ) -> None:
        for length in (WINDOW_BASES - 1, WINDOW_BASES + 1):
            with pytest.raises(EncoderError, match=f"exactly 10500 bases.*got {length}"):
                tokenizer(random_sequence(spec, length, 1))


def plain_forward(sequence: str, arrays: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """From the published Keras configuration, in float64, window by window."""
    hidden = np.zeros((len(sequence), 4))
    for position, letter in enumerate(sequence):
        if letter in "ACGT":
            hidden[position, "ACGT".index(letter)] = 1
    for layer, pool in (("conv1d_1", 30), ("conv1d_2", 10)):
        kernel, bias = arrays[f"{layer}/kernel"], arrays[f"{layer}/bias"]
        before = (len(kernel) - 1) // 2
        padded = np.pad(hidden, ((before, len(kernel) - 1 - before), (0, 0)))
        summed = sum(padded[i : i + len(hidden)] @ kernel[i] for i in range(len(kernel)))
        active = np.maximum(summed + bias, 0)
        kept = len(active) // pool * pool
        hidden = active[:kept].reshape(-1, pool, active.shape[1]).max(axis=1)
    features = np.concatenate([hidden.reshape(-1), np.zeros(6)])
    return np.maximum(features @ arrays["dense_1/kernel"] + arrays["dense_1/bias"], 0)


def test_parity_with_a_plain_forward(file: Path) -> None:
    choice = EncoderChoice(name="xpresso", weights=str(file))
    spec = get_spec(choice)
    sequences = [random_sequence(spec, WINDOW_BASES, seed) for seed in range(2)]
    sequences[1] = "N" * 700 + sequences[1][700:]
    encoded = load_encoder(choice).encode(pack([load_tokenizer(choice)(one) for one in sequences]))
    with h5py.File(file) as stored:
        arrays = {
            name: np.asarray(stored[f"model_weights/{name.split('/')[0]}/{name}:0"], dtype=np.float64)
            for name in SHAPES
        }
    bound = spec.parity
    for got, sequence in zip(reduce(encoded, "tokens"), sequences, strict=True):
        assert got.shape == (1, 64)
        np.testing.assert_allclose(got[0], plain_forward(sequence, arrays), rtol=bound, atol=bound)


def test_random_weights_are_labelled_and_exclude_a_file(file: Path) -> None:
    choice = EncoderChoice(name="xpresso", random_seed=4)
    assert get_spec(choice).trained == "random"
    assert load_encoder(choice).weights_digest == "random-4"
    with pytest.raises(ConfigError, match="not both"):
        get_spec(EncoderChoice(name="xpresso", random_seed=4, weights=str(file)))


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"comes without weights: give `weights`, a \.h5 file"):
        load_encoder(EncoderChoice(name="xpresso"))
    broken = tmp_path / "broken.h5"
    broken.write_bytes(b"not hdf5")
    with pytest.raises(EncoderError, match="not a readable HDF5 file"):
        load_encoder(EncoderChoice(name="xpresso", weights=str(broken)))
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as out:
        out["model_weights/conv1d_1/conv1d_1/kernel:0"] = np.zeros((6, 4, 64))
    with pytest.raises(EncoderError, match=r"missing: conv1d_1/bias.*conv1d_1/kernel is \(6, 4, 64\)"):
        load_encoder(EncoderChoice(name="xpresso", weights=str(other)))
