"""Borzoi and Flashzoi: parity of the native network with borzoi-pytorch, the contract, bad folders.

Flashzoi's attention is the CUDA package flash-attn, which no CPU runs: in its place the package's network
gets `PlainMha`, the same parameters and the same formulas as plain products.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from encoders.contract import EncoderContract, random_sequence
from encoders.tiny import write_folder
from encoders.windows import largest_difference, one_hot, with_values_that_count
from isoformer.encoders import fixed_window
from isoformer.encoders.borzoi_model import distance_features
from isoformer.encoders.registry import EncoderChoice, get_spec, load_encoder, load_tokenizer
from isoformer.encoders.spec import EncoderSpec, Tokenizer, pack
from isoformer.errors import EncoderError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # an escape sequence in the package's source
    from borzoi_pytorch import Borzoi
    from borzoi_pytorch.pytorch_borzoi_transformer import get_positional_embed

BASES = 1536
CONFIGS: dict[str, dict[str, Any]] = {
    "borzoi": {
        "model_type": "borzoi",
        "dim": 48,
        "depth": 2,
        "heads": 3,
        "attn_dim_key": 12,
        "attn_dim_value": 20,
        "bins_to_return": 30,
        "return_center_bins_only": True,
        "enable_mouse_head": True,
        "sequence_bases": BASES,
    },
    "flashzoi": {
        "model_type": "borzoi",
        "dim": 4 * 144,
        "depth": 2,
        "heads": 4,
        "bins_to_return": 30,
        "return_center_bins_only": True,
        "enable_mouse_head": False,
        "flashed": True,
        "sequence_bases": BASES,
    },
}


class PlainMha(nn.Module):
    """flash_attn.modules.mha.MHA with fewer heads of keys than of queries, after that package's formulas."""

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int,
        num_heads_kv: int,
        softmax_scale: float,
        rotary_emb_dim: int,
        rotary_emb_base: float,
        **fixed: Any,
    ) -> None:
        super().__init__()
        assert fixed["rotary_emb_scale_base"] is None
        assert not fixed["causal"]
        self.head, self.queries, self.keys = embed_dim // num_heads, num_heads, num_heads_kv
        self.scale, self.turned, self.base = softmax_scale, rotary_emb_dim, rotary_emb_base
        self.Wqkv = nn.Linear(embed_dim, self.head * (num_heads + 2 * num_heads_kv))
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.Wqkv(x)
        q = rearrange(qkv[..., : self.queries * self.head], "b s (h d) -> b s h d", d=self.head)
        kv = qkv[..., self.queries * self.head :]
        k, v = rearrange(kv, "b s (two h d) -> two b s h d", two=2, d=self.head)
        q, k = self.rotate(q), self.rotate(k)
        mixed = []
        for head in range(self.queries):
            of = head // (self.queries // self.keys)
            scores = torch.einsum("bid,bjd->bij", q[:, :, head], k[:, :, of]) * self.scale
            mixed.append(torch.einsum("bij,bjd->bid", scores.softmax(-1), v[:, :, of]))
        return self.out_proj(torch.cat(mixed, dim=-1))

    def rotate(self, x: Tensor) -> Tensor:
        """Value i of the first half turns with value i of the second; the rest of the head stays."""
        half = self.turned // 2
        out = x.clone()
        for i in range(half):
            angle = torch.arange(x.shape[1]).float() * self.base ** (-2 * i / self.turned)
            cos, sin = angle.cos()[:, None], angle.sin()[:, None]
            out[..., i] = x[..., i] * cos - x[..., i + half] * sin
            out[..., i + half] = x[..., i + half] * cos + x[..., i] * sin
        return out


@pytest.fixture(scope="module")
def plain_flash_attn() -> Iterator[None]:
    modules = {
        name: ModuleType(name) for name in ("flash_attn", "flash_attn.modules", "flash_attn.modules.mha")
    }
    modules["flash_attn.modules.mha"].MHA = PlainMha  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        yield


@pytest.fixture(scope="module")
def package_models(plain_flash_attn: None) -> dict[str, Borzoi]:
    return {name: package_model(name) for name in CONFIGS}


def package_model(name: str) -> Borzoi:
    """The package's attention is written for 4,096 positions; here there are fewer."""
    torch.manual_seed(0)
    model = Borzoi.from_hparams(
        **{key: value for key, value in CONFIGS[name].items() if key != "sequence_bases"}
    )
    for module in model.modules():
        if hasattr(module, "positions"):
            module.positions = get_positional_embed(BASES // 128, 32, "cpu")
    return with_values_that_count(model)


@pytest.fixture(scope="module")
def folders(package_models: dict[str, Borzoi], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: write_folder(tmp_path_factory.mktemp(name), CONFIGS[name], model.state_dict())
        for name, model in package_models.items()
    }


class TestBorzoiFolder(EncoderContract):
    lengths = (BASES,) * 3
    probe_length = BASES
    name = "borzoi"
    seed: int | None = None

    @pytest.fixture
    def choice(self, folders: dict[str, Path]) -> EncoderChoice:
        return EncoderChoice(name=self.name, weights=str(folders[self.name]), random_seed=self.seed)

    def test_long_sequences_are_cropped_by_the_stated_policy(
        self, tokenizer: Tokenizer, spec: EncoderSpec
    ) -> None:
        for length in (BASES - 1, BASES + 1):
            with pytest.raises(EncoderError, match=f"{self.name} reads exactly {BASES} bases.*got {length}"):
                tokenizer(random_sequence(spec, length, 1))


class TestFlashzoiFolder(TestBorzoiFolder):
    name = "flashzoi"


class TestFlashzoiRandom(TestBorzoiFolder):
    name = "flashzoi"
    seed = 3


def texts_with_unknown_letters(count: int) -> list[str]:
    """The last with a stretch of N, lower case, and one N by itself."""
    texts = ["".join(np.random.default_rng(seed).choice(list("ACGT"), BASES)) for seed in range(count)]
    texts[-1] = "N" * 300 + texts[-1][300:700].lower() + "N" + texts[-1][701:]
    return texts


def packages_states(model: Borzoi, texts: list[str]) -> Tensor:
    with torch.no_grad():
        return model.get_embs_after_crop(one_hot(texts).transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("name", ["borzoi", "flashzoi"])
def test_parity_with_the_package_at_all_positions(
    package_models: dict[str, Borzoi],
    folders: dict[str, Path],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fixed_window, "QUERIES_AT_ONCE", 5)  # of 12 positions
    choice = EncoderChoice(name=name, weights=str(folders[name]))
    texts = texts_with_unknown_letters(2)
    tokens = [load_tokenizer(choice)(text) for text in texts]
    encoder = load_encoder(choice)
    expected = packages_states(package_models[name], texts)
    assert expected.shape == (2, 30, CONFIGS[name]["dim"])
    crowd = encoder.encode(pack(tokens)).hidden_PD.unflatten(0, expected.shape[:2])
    alone = torch.stack([encoder.encode(pack([one])).hidden_PD for one in tokens])
    torch.testing.assert_close(crowd, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["borzoi", "flashzoi"])
@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 3e-2), ("f16", 4e-3)])
def test_half_precision_stays_within_its_bound(
    package_models: dict[str, Borzoi], folders: dict[str, Path], name: str, precision: str, tolerance: float
) -> None:
    """Against the package in float32, relative to the largest value of the same position."""
    choice = EncoderChoice.model_validate(
        {"name": name, "weights": str(folders[name]), "precision": precision}
    )
    texts = texts_with_unknown_letters(1)
    got = load_encoder(choice).encode(pack([load_tokenizer(choice)(texts[0])])).hidden_PD
    assert largest_difference(got, packages_states(package_models[name], texts)[0]) < tolerance


@pytest.mark.parametrize("length", [4096, 12, 2])
def test_the_distance_features_are_the_packages(length: int) -> None:
    assert torch.equal(distance_features(length), get_positional_embed(length, 32, "cpu"))


@pytest.mark.parametrize("name", ["borzoi", "flashzoi"])
def test_the_spec_counts_parameters_and_operations(
    package_models: dict[str, Borzoi], folders: dict[str, Path], name: str
) -> None:
    choice = EncoderChoice(name=name, weights=str(folders[name]))
    spec = get_spec(choice)
    assert spec.parameter_count == sum(
        parameter.numel()
        for of, parameter in package_models[name].named_parameters()
        if not of.startswith(("final_joined_convs", "human_head", "mouse_head"))
    )
    tokens = load_tokenizer(choice)(random_sequence(spec, BASES, 1))
    encoder = load_encoder(choice)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        encoder.encode(pack([tokens]))
    assert spec.flops(len(tokens)) == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize(("name", "parameters"), [("borzoi", 168_317_856), ("flashzoi", 174_494_624)])
def test_the_published_sizes(name: str, parameters: int) -> None:
    spec = get_spec(EncoderChoice(name=name))
    assert (spec.width, spec.window_bases, spec.max_tokens) == (1536, (262_144, 262_144), 65_536)
    assert spec.parameter_count == parameters


def test_bad_folders_are_refused(package_models: dict[str, Borzoi], tmp_path: Path) -> None:
    state = dict(package_models["borzoi"].state_dict())
    gone = "transformer.1.0.fn.1.to_rel_k.weight"
    for broken, problem in (
        ({name: tensor for name, tensor in state.items() if name != gone}, f"missing: {gone}"),
        ({**state, "unet2.weight": torch.zeros(2)}, r"not known: unet2\.weight"),
        ({**state, gone: torch.zeros(36, 31)}, r"to_rel_k\.weight is \(36, 31\), must be \(36, 32\)"),
    ):
        write_folder(tmp_path, CONFIGS["borzoi"], broken)
        with pytest.raises(EncoderError, match=problem):
            load_encoder(EncoderChoice(name="borzoi", weights=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("borzoi", {"flashed": True, "dim": 256, "heads": 2}, "flashed is True.*that encoder is flashzoi"),
        ("flashzoi", {"flashed": False}, "flashed is False.*that encoder is borzoi, not flashzoi"),
        ("flashzoi", {"heads": 8}, "heads must be even and divide dim into 128 or more"),
        ("borzoi", {"bins_to_return": 29}, "must leave an even number of the 48 bins"),
        ("borzoi", {"bins_to_return": 50}, "must leave an even number of the 48 bins"),
        ("borzoi", {"model_type": "enformer"}, "model_type must be 'borzoi', got 'enformer'"),
        ("borzoi", {"sequence_bases": 1000}, "sequence_bases"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, change: dict[str, Any], problem: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIGS[name], **change}))
    with pytest.raises(EncoderError, match=problem):
        get_spec(EncoderChoice(name=name, weights=str(tmp_path)))


def test_all_bins_but_the_edges_may_be_asked_for(folders: dict[str, Path], tmp_path: Path) -> None:
    config = {**CONFIGS["borzoi"], "return_center_bins_only": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    choice = EncoderChoice(name="borzoi", weights=str(tmp_path), random_seed=1)
    tokens = load_tokenizer(choice)(random_sequence(get_spec(choice), BASES, 1))
    assert load_encoder(choice).encode(pack([tokens])).offsets.tolist() == [0, BASES // 32 - 32]
    assert np.isfinite(get_spec(choice).flops_per_token)
