"""ESM-2: parity of the packed forward with the library's own model, the contract, and bad weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import EsmConfig, EsmForMaskedLM, EsmModel

from encoders.contract import EncoderContract
from encoders.library import library_states
from encoders.tiny import ESM2_CONFIG, write_folder
from isoformer.encoders import prepacked
from isoformer.encoders.esm2 import Esm2Tokenizer
from isoformer.encoders.packed_transformer import load_transformer
from isoformer.encoders.registry import (
    EncoderChoice,
    Precision,
    get_spec,
    load_encoder,
    load_tokenizer,
    weights_digest,
)
from isoformer.encoders.spec import pack
from isoformer.encoders.transformer_config import transformer_config
from isoformer.errors import ConfigError, EncoderError

LENGTHS = (1, 3, 40, 17, 17, 200, 300, 470)


@pytest.fixture(scope="module")
def library_model() -> EsmModel:
    torch.manual_seed(0)
    model = EsmForMaskedLM(EsmConfig(**ESM2_CONFIG)).eval()
    for parameter in model.parameters():  # norms and biases that count
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return model


@pytest.fixture(scope="module")
def folder(library_model: EsmForMaskedLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("esm2"), ESM2_CONFIG, library_model.state_dict())


def proteins(lengths: tuple[int, ...]) -> list[str]:
    rng = np.random.default_rng(1)
    return ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWYBX"), size=length)) for length in lengths]


class TestEsm2Folder(EncoderContract):
    @pytest.fixture
    def choice(self, folder: Path) -> EncoderChoice:
        return EncoderChoice(name="esm2", weights=str(folder))


class TestEsm2Random(EncoderContract):
    @pytest.fixture
    def choice(self, folder: Path) -> EncoderChoice:
        return EncoderChoice(name="esm2", weights=str(folder), random_seed=3)


VARIANTS: dict[str, dict[str, object]] = {
    "esm2": {},
    "without token dropout": {"token_dropout": False},
    "learned positions": {"position_embedding_type": "absolute", "token_dropout": False},
    "norm after the embedding": {"position_embedding_type": "absolute", "emb_layer_norm_before": True},
}


def library_variant(fields: dict[str, object]) -> EsmModel:
    torch.manual_seed(0)
    model = EsmModel(EsmConfig(**{**ESM2_CONFIG, **fields}), add_pooling_layer=False).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("prepack", [True, False])
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_parity_with_the_library_at_all_positions(
    variant: str, padding_side: str, prepack: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepacked, "is_available", lambda: prepack)
    model = library_variant(VARIANTS[variant])
    folder = write_folder(tmp_path, {**ESM2_CONFIG, **VARIANTS[variant]}, model.state_dict())
    choice = EncoderChoice(name="esm2", weights=str(folder))
    tokens = [load_tokenizer(choice)(protein) for protein in proteins(LENGTHS)]
    ours = load_encoder(choice, "cpu").encode(pack(tokens))
    for row, states in enumerate(library_states(model, tokens, padding_side)):
        got = ours.hidden_PD[ours.offsets[row] : ours.offsets[row + 1]]
        assert got.shape == (LENGTHS[row], ESM2_CONFIG["hidden_size"])
        torch.testing.assert_close(got, states[-1][1:-1], rtol=1e-5, atol=1e-5)
        assert ours.cls_BD is not None
        torch.testing.assert_close(ours.cls_BD[row], states[-1][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "average_layers", "expected"),
    [(-1, 1, [3]), (0, 1, [0]), (2, 1, [2]), (-2, 1, [2]), (-1, 4, [0, 1, 2, 3]), (2, 2, [1, 2])],
)
def test_layers_are_numbered_as_in_the_library(
    layer: int, average_layers: int, expected: list[int], tmp_path: Path
) -> None:
    model = library_variant({})
    folder = write_folder(tmp_path, ESM2_CONFIG, model.state_dict())
    choice = EncoderChoice(name="esm2", weights=str(folder), layer=layer, average_layers=average_layers)
    tokens = [load_tokenizer(choice)(protein) for protein in proteins(LENGTHS)]
    ours = load_encoder(choice, "cpu").encode(pack(tokens))
    for row, states in enumerate(library_states(model, tokens, "right")):
        mean = torch.stack([states[index] for index in expected]).mean(dim=0)[1:-1]
        torch.testing.assert_close(
            ours.hidden_PD[ours.offsets[row] : ours.offsets[row + 1]], mean, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(("layer", "average_layers"), [(4, 1), (-5, 1), (1, 3)])
def test_a_layer_that_is_not_there_is_refused(folder: Path, layer: int, average_layers: int) -> None:
    with pytest.raises(ConfigError, match=r"there are 0 \(the embedding\) to 3"):
        get_spec(EncoderChoice(name="esm2", weights=str(folder), layer=layer, average_layers=average_layers))


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.05), ("f16", 0.01)])
def test_half_precision_stays_near(folder: Path, precision: Precision, bound: float) -> None:
    """Relative to a position's norm: 0.05 for bfloat16's 8 bits, 0.01 for float16's 11."""
    exact = EncoderChoice(name="esm2", weights=str(folder))
    half = EncoderChoice(name="esm2", weights=str(folder), precision=precision)
    packed = pack([load_tokenizer(exact)(protein) for protein in proteins(LENGTHS)])
    expected = load_encoder(exact).encode(packed).hidden_PD
    got = load_encoder(half).encode(packed).hidden_PD
    assert got.dtype == torch.float32
    assert 0 < float(((got - expected).norm(dim=1) / expected.norm(dim=1)).max()) < bound


def test_a_folder_that_the_library_saved_loads(
    library_model: EsmForMaskedLM, folder: Path, tmp_path: Path
) -> None:
    """It writes `LayerNorm.gamma` and `.beta` where the published files have `.weight` and `.bias`."""
    library_model.save_pretrained(tmp_path)
    choices = [EncoderChoice(name="esm2", weights=str(where)) for where in (folder, tmp_path)]
    packed = pack([load_tokenizer(choices[0])("MKVLAWGX")])
    first, second = (load_encoder(choice).encode(packed).hidden_PD for choice in choices)
    assert torch.equal(first, second)


def test_token_dropout_scales_each_sequence_by_its_own_masks(
    library_model: EsmForMaskedLM, folder: Path
) -> None:
    model = load_transformer(
        transformer_config(ESM2_CONFIG, gated_feed_forward=False, file="config.json"), folder
    )
    generator = torch.Generator().manual_seed(2)
    first, second = (torch.randint(4, 24, (length,), generator=generator) for length in (9, 14))
    second[[2, 5, 6]] = ESM2_CONFIG["mask_token_id"]
    with torch.no_grad():
        packed = model(torch.cat([first, second]), [0, 9, 23])
        expected = [
            library_model.esm(ids[None], attention_mask=torch.ones(1, len(ids))).last_hidden_state[0]
            for ids in (first, second)
        ]
    torch.testing.assert_close(packed, torch.cat(expected), rtol=1e-5, atol=1e-5)


def test_the_vocabulary_is_the_published_one() -> None:
    vocabulary = (
        "<cls> <pad> <eos> <unk> L A G V S E R T I D P K Q N F Y M H W C X B U Z O . - <null_1> <mask>"
    )
    ids = {letter: index for index, letter in enumerate(vocabulary.split())}
    tokens = Esm2Tokenizer(50)("MKJUxb*Z*")
    expected = ["<cls>", "M", "K", "X", "U", "X", "B", "X", "Z", "<eos>"]
    assert tokens.token_ids.tolist() == [ids[letter] for letter in expected]
    assert tokens.counts == {"lower_case_residues": 2, "masked_residues": 3}


def test_random_weights_repeat_and_are_labelled(folder: Path) -> None:
    choices = [EncoderChoice(name="esm2", weights=str(folder), random_seed=seed) for seed in (1, 1, 2)]
    first, again, other = (load_encoder(choice) for choice in choices)
    assert first.spec.trained == "random"
    assert first.weights_digest == "random-1"
    packed = pack([load_tokenizer(choices[0])("MKVLAW")])
    states = [encoder.encode(packed).hidden_PD for encoder in (first, again, other)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_weights_of_another_shape_or_name_are_refused(library_model: EsmForMaskedLM, tmp_path: Path) -> None:
    state = library_model.state_dict()
    missing = {name: tensor for name, tensor in state.items() if "layer.1.output.dense.bias" not in name}
    surplus = {**state, "esm.encoder.layer.0.adapter.weight": torch.zeros(2)}
    reshaped = {**state, "esm.embeddings.word_embeddings.weight": torch.zeros(30, 32)}
    for broken, problem in (
        (missing, r"missing: encoder\.layer\.1\.output\.dense\.bias"),
        (surplus, r"not known: encoder\.layer\.0\.adapter\.weight"),
        (reshaped, r"is \(30, 32\), must be \(33, 32\)"),
    ):
        folder = write_folder(tmp_path, ESM2_CONFIG, broken)
        with pytest.raises(EncoderError, match=problem):
            load_encoder(EncoderChoice(name="esm2", weights=str(folder)))


def test_a_corrupted_file_and_a_pickle_of_code_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(EncoderError, match="not a readable file"):
        load_encoder(EncoderChoice(name="esm2", weights=str(tmp_path)))
    (tmp_path / "model.safetensors").unlink()
    torch.save({"weight": print}, tmp_path / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="not a readable file of plain tensors"):
        load_encoder(EncoderChoice(name="esm2", weights=str(tmp_path)))


def test_the_digest_is_of_the_bytes(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    blob = bytearray((folder / "model.safetensors").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(blob)
    original = weights_digest(EncoderChoice(name="esm2", weights=str(folder)))
    assert weights_digest(EncoderChoice(name="esm2", weights=str(tmp_path))) == original
    blob[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(blob)
    assert weights_digest(EncoderChoice(name="esm2", weights=str(tmp_path))) != original


def test_a_variant_that_is_not_covered_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {**ESM2_CONFIG, "rope_theta": 500.0}, {"x": torch.zeros(1)})
    with pytest.raises(EncoderError, match="rope_theta must be 10000"):
        load_tokenizer(EncoderChoice(name="esm2", weights=str(folder)))


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(EncoderError, match=r"no config\.json in /nowhere"):
        load_tokenizer(EncoderChoice(name="esm2", weights="/nowhere"))
