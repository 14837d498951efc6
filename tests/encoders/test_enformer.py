"""Enformer: parity of the native network with the package enformer-pytorch, the contract, and bad folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from enformer_pytorch import Enformer, str_to_one_hot
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from encoders.contract import EncoderContract, random_sequence
from encoders.tiny import write_folder
from encoders.windows import largest_difference, with_values_that_count
from isoformer.encoders import fixed_window
from isoformer.encoders.convolutional_trunk import WindowEncoder
from isoformer.encoders.enformer_model import distance_features
from isoformer.encoders.registry import EncoderChoice, get_spec, load_encoder, load_tokenizer
from isoformer.encoders.spec import EncoderSpec, Tokenizer, pack
from isoformer.errors import EncoderError

BASES = 1280
CONFIG: dict[str, Any] = {
    "model_type": "enformer",
    "dim": 48,
    "depth": 2,
    "heads": 2,
    "target_length": 10,
    "attn_dim_key": 12,
    "num_downsamples": 6,
    "dim_divisible_by": 8,
    "output_heads": {"human": 5},
    "use_tf_gamma": False,
    "sequence_bases": BASES,
}


@pytest.fixture(scope="module")
def package_model() -> Enformer:
    torch.manual_seed(0)
    model = Enformer.from_hparams(**{name: CONFIG[name] for name in CONFIG if name != "sequence_bases"})
    return with_values_that_count(model)


@pytest.fixture(scope="module")
def folder(package_model: Enformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("enformer"), CONFIG, package_model.state_dict())


def texts_with_unknown_letters(count: int) -> list[str]:
    """The last with a stretch of N, lower case, and one N by itself."""
    texts = ["".join(np.random.default_rng(seed).choice(list("ACGT"), BASES)) for seed in range(count)]
    texts[-1] = "N" * 300 + texts[-1][300:700].lower() + "N" + texts[-1][701:]
    return texts


class TestEnformerFolder(EncoderContract):
    lengths = (BASES,) * 3
    probe_length = BASES

    @pytest.fixture
    def choice(self, folder: Path) -> EncoderChoice:
        return EncoderChoice(name="enformer", weights=str(folder))

    def test_long_sequences_are_cropped_by_the_stated_policy(
        self, tokenizer: Tokenizer, spec: EncoderSpec
    ) -> None:
        for length in (BASES - 1, BASES + 1):
            with pytest.raises(EncoderError, match=f"exactly {BASES} bases.*got {length}"):
                tokenizer(random_sequence(spec, length, 1))


class TestEnformerRandom(TestEnformerFolder):
    @pytest.fixture
    def choice(self, folder: Path) -> EncoderChoice:
        return EncoderChoice(name="enformer", weights=str(folder), random_seed=3)


def packages_states(model: Enformer, texts: list[str]) -> Tensor:
    with torch.no_grad():
        return model(str_to_one_hot(texts), return_only_embeddings=True)


@pytest.mark.parametrize("queries_at_once", [fixed_window.QUERIES_AT_ONCE, 7, 1])
def test_parity_with_the_package_at_all_positions(
    package_model: Enformer, folder: Path, queries_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed_window, "QUERIES_AT_ONCE", queries_at_once)
    choice = EncoderChoice(name="enformer", weights=str(folder))
    texts = texts_with_unknown_letters(3)
    tokens = [load_tokenizer(choice)(text) for text in texts]
    encoder = load_encoder(choice)
    expected = packages_states(package_model, texts)
    assert expected.shape == (3, CONFIG["target_length"], 2 * CONFIG["dim"])
    crowd = encoder.encode(pack(tokens)).hidden_PD.unflatten(0, expected.shape[:2])
    alone = torch.stack([encoder.encode(pack([one])).hidden_PD for one in tokens])
    torch.testing.assert_close(crowd, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 3e-2), ("f16", 4e-3)])
def test_half_precision_stays_within_its_bound(
    package_model: Enformer, folder: Path, precision: str, tolerance: float
) -> None:
    """Against the package in float32, relative to the largest value of the same position."""
    choice = EncoderChoice.model_validate(
        {"name": "enformer", "weights": str(folder), "precision": precision}
    )
    texts = texts_with_unknown_letters(2)
    got = load_encoder(choice).encode(pack([load_tokenizer(choice)(text) for text in texts])).hidden_PD
    expected = packages_states(package_model, texts)
    assert largest_difference(got.unflatten(0, expected.shape[:2]), expected) < tolerance


@pytest.mark.parametrize(("length", "features"), [(1536, 192), (20, 24), (2, 6)])
def test_the_distance_features_are_the_packages(length: int, features: int) -> None:
    from enformer_pytorch.modeling_enformer import get_positional_embed

    expected = get_positional_embed(length, features, torch.device("cpu"), use_tf_gamma=False)
    assert torch.equal(distance_features(length, features), expected)


@pytest.mark.parametrize("prefixes", [("_trunk.",), ("stem.", "conv_tower.", "transformer.", "final_")])
def test_a_file_may_name_each_tensor_once(
    package_model: Enformer, folder: Path, tmp_path: Path, prefixes: tuple[str, ...]
) -> None:
    """The package registers every part twice; safetensors files keep one of the names."""
    state = {name: tensor for name, tensor in package_model.state_dict().items() if name.startswith(prefixes)}
    once = EncoderChoice(name="enformer", weights=str(write_folder(tmp_path, CONFIG, state)))
    both = EncoderChoice(name="enformer", weights=str(folder))
    tokens = load_tokenizer(both)(random_sequence(get_spec(both), BASES, 1))
    hidden = [load_encoder(choice).encode(pack([tokens])).hidden_PD for choice in (once, both)]
    assert torch.equal(hidden[0], hidden[1])


def test_a_torch_file_loads_as_it_is(package_model: Enformer, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save(package_model.state_dict(), tmp_path / "pytorch_model.bin")
    encoders = [
        cast(WindowEncoder, load_encoder(EncoderChoice(name="enformer", weights=str(where))))
        for where in (folder, tmp_path)
    ]
    states = [encoder.model.state_dict() for encoder in encoders]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_the_spec_counts_parameters_and_operations(package_model: Enformer, folder: Path) -> None:
    choice = EncoderChoice(name="enformer", weights=str(folder))
    spec = get_spec(choice)
    counted = sum(p.numel() for name, p in package_model.named_parameters() if not name.startswith("_heads"))
    assert spec.parameter_count == counted
    tokens = load_tokenizer(choice)(random_sequence(spec, BASES, 1))
    encoder = load_encoder(choice)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        encoder.encode(pack([tokens]))
    assert spec.flops(len(tokens)) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_the_published_sizes() -> None:
    spec = get_spec(EncoderChoice(name="enformer"))
    assert (spec.width, spec.window_bases, spec.max_tokens) == (3072, (98_304, 98_304), 24_576)
    assert spec.parameter_count == 229_845_504


def test_bad_folders_are_refused(package_model: Enformer, tmp_path: Path) -> None:
    state = package_model.state_dict()
    missing = {name: tensor for name, tensor in state.items() if "conv_tower.1.0.2" not in name}
    missing = {name: tensor for name, tensor in missing.items() if "_trunk.2.1.0.2" not in name}
    for broken, problem in (
        (missing, r"missing: conv_tower\.1\.0\.2\.bias, conv_tower\.1\.0\.2\.weight$"),
        ({**state, "stem.3.weight": torch.zeros(2)}, r"not known: stem\.3\.weight"),
        (
            {**state, "stem.0.weight": torch.zeros(24, 4, 15)},
            r"stem\.0\.weight has two values.*under _trunk\.1\.;",
        ),
    ):
        write_folder(tmp_path, CONFIG, broken)
        with pytest.raises(EncoderError, match=problem):
            load_encoder(EncoderChoice(name="enformer", weights=str(tmp_path)))
    reshaped = {name: tensor for name, tensor in state.items() if not name.startswith("_trunk.")}
    reshaped["stem.0.bias"] = torch.zeros(25)
    write_folder(tmp_path, CONFIG, reshaped)
    with pytest.raises(EncoderError, match=r"stem\.0\.bias is \(25,\), must be \(24,\)"):
        load_encoder(EncoderChoice(name="enformer", weights=str(tmp_path)))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"use_tf_gamma": True}, "use_tf_gamma must be false"),
        ({"model_type": "borzoi"}, "model_type must be 'enformer', got 'borzoi'"),
        ({"target_length": 21}, "target_length must leave an even number of the 20"),
        ({"heads": 5}, "dim must be a multiple of 6 times heads"),
        ({"sequence_bases": 1288}, "sequence_bases must be a multiple"),
        ({"depth": "many"}, "depth"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(EncoderError, match=problem):
        get_spec(EncoderChoice(name="enformer", weights=str(tmp_path)))


def test_without_weights_it_says_so_and_another_length_is_refused(folder: Path) -> None:
    with pytest.raises(EncoderError, match="without weights"):
        load_encoder(EncoderChoice(name="enformer"))
    choice = EncoderChoice(name="enformer", weights=str(folder))
    tokens = load_tokenizer(choice)(random_sequence(get_spec(choice), BASES, 1))
    cut = pack([tokens, type(tokens)(np.array(tokens.token_ids[:7]))])
    with pytest.raises(EncoderError, match="every sequence must have 160 tokens"):
        load_encoder(choice).encode(cut)
