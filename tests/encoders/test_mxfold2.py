"""MXfold2: an independent numpy forward on a file in the published layout, the contract, and bad files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from encoders.contract import EncoderContract
from isoformer.encoders.mxfold2 import PARAMETER_COUNT, new_modules
from isoformer.encoders.registry import EncoderChoice, load_encoder, load_tokenizer
from isoformer.encoders.resolution import reduce
from isoformer.encoders.spec import pack
from isoformer.errors import EncoderError

Arrays = dict[str, NDArray[np.float64]]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = torch.Generator().manual_seed(0)
    state = {
        f"zuker.net.{name}": 0.3 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in new_modules().state_dict().items()
    }
    state |= {"turner.score_stack": torch.zeros(8, 8), "zuker.net.fc_paired.fc.0.bias": torch.zeros(32)}
    path = tmp_path_factory.mktemp("mxfold2") / "weights.pth"
    torch.save(state, path)
    return path


class TestMxfold2(EncoderContract):
    @pytest.fixture
    def choice(self, file: Path) -> EncoderChoice:
        return EncoderChoice(name="mxfold2", weights=str(file))


class TestMxfold2Random(EncoderContract):
    @pytest.fixture
    def choice(self) -> EncoderChoice:
        return EncoderChoice(name="mxfold2", random_seed=2)


def sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-values))


def celu(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(values, 0) + np.minimum(0, np.exp(np.minimum(values, 0)) - 1)


def standardised(values: NDArray[np.float64], axis: int | None) -> NDArray[np.float64]:
    centred = values - values.mean(axis=axis, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=axis, keepdims=True) + 1e-5)


def one_direction(inputs: NDArray[np.float64], weights: Arrays, suffix: str) -> NDArray[np.float64]:
    hidden = cell = np.zeros(32)
    states = []
    for step in inputs:
        total = weights[f"weight_ih_{suffix}"] @ step + weights[f"bias_ih_{suffix}"]
        total = total + weights[f"weight_hh_{suffix}"] @ hidden + weights[f"bias_hh_{suffix}"]
        entry, forget, update, output = np.split(total, 4)
        cell = sigmoid(forget) * cell + sigmoid(entry) * np.tanh(update)
        hidden = sigmoid(output) * np.tanh(cell)
        states.append(hidden)
    return np.stack(states)


def plain_forward(token_ids: NDArray[np.int32], arrays: Arrays) -> NDArray[np.float64]:
    """From the published configuration and layer descriptions, one RNA, (nucleotides, 64)."""
    hidden = arrays["embedding.embedding.weight"][token_ids]
    for layer, size in enumerate((5, 3) * 4):
        part = f"encoder.conv.net.{layer}."
        padded = np.pad(hidden, ((size // 2, size // 2), (0, 0)))
        kernel = arrays[part + "0.weight"]
        summed = sum(padded[i : i + len(hidden)] @ kernel[:, :, i].T for i in range(size))
        normed = standardised(summed + arrays[part + "0.bias"], None)
        hidden = hidden + celu(normed * arrays[part + "2.weight"] + arrays[part + "2.bias"])
    weights = {name.removeprefix("encoder.lstm."): array for name, array in arrays.items()}
    recurrent = hidden
    for layer in range(2):
        forward = one_direction(recurrent, weights, f"l{layer}")
        backward = one_direction(recurrent[::-1], weights, f"l{layer}_reverse")[::-1]
        recurrent = np.concatenate([forward, backward], axis=1)
    normed = standardised(recurrent, 1)
    hidden = hidden + celu(normed * arrays["encoder.lstm_ln.weight"] + arrays["encoder.lstm_ln.bias"])
    projected = hidden @ arrays["encoder.att.in_proj_weight"].T + arrays["encoder.att.in_proj_bias"]
    query, key, value = (part.reshape(len(hidden), 8, 8) for part in np.split(projected, 3, axis=1))
    scores = np.exp(np.einsum("ihd,jhd->hij", query, key) / np.sqrt(8))
    mixed = np.einsum("hij,jhd->ihd", scores / scores.sum(axis=2, keepdims=True), value).reshape(hidden.shape)
    return hidden + mixed @ arrays["encoder.att.out_proj.weight"].T + arrays["encoder.att.out_proj.bias"]


def test_parity_with_a_plain_forward_at_all_positions(file: Path) -> None:
    choice = EncoderChoice(name="mxfold2", weights=str(file))
    tokens = [load_tokenizer(choice)(rna) for rna in ("ACGU", "GGGAAACCCUUUNACGUACGGAUCC" * 3)]
    got = reduce(load_encoder(choice).encode(pack(tokens)), "tokens")
    state = torch.load(file, weights_only=True)
    arrays = {name.removeprefix("zuker.net."): tensor.double().numpy() for name, tensor in state.items()}
    for states, one in zip(got, tokens, strict=True):
        np.testing.assert_allclose(states, plain_forward(one.token_ids, arrays)[1:], rtol=1e-5, atol=1e-5)


def test_the_parameter_count_is_right() -> None:
    assert sum(tensor.numel() for tensor in new_modules().parameters()) == PARAMETER_COUNT


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="pip download --no-deps mxfold2"):
        load_encoder(EncoderChoice(name="mxfold2"))
    torch.save({"zuker.net.embedding.embedding.weight": torch.zeros(6, 64)}, tmp_path / "half.pth")
    with pytest.raises(EncoderError, match=r"missing: encoder\.att"):
        load_encoder(EncoderChoice(name="mxfold2", weights=str(tmp_path / "half.pth")))
