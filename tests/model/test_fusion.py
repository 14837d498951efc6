"""Fusions: the paper's equations to the number, and one contract that every fusion keeps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from isoformer.config import build
from isoformer.errors import ConfigError
from isoformer.fusion import (
    FUSIONS,
    CAbstractorFusion,
    CrossAttention,
    FusionOptions,
    Tokens,
    adaptive_mean,
    build_fusion,
    masked_mean,
)
from isoformer.model import IsoFormer, ModelConfig
from isoformer.model_config import FUSION_NAMES
from isoformer.schema import MODALITIES, Modality

WIDTHS: dict[Modality, int] = {"dna": 8, "rna": 12, "protein": 16}


def made_tokens(seed: int = 0, samples: int = 4) -> dict[Modality, Tokens]:
    """Samples of different lengths; sample 1 lacks protein, sample 2 all but RNA, sample 3 everything."""
    generator = torch.Generator().manual_seed(seed)
    present = {"dna": [3, 5, 0, 0], "rna": [2, 4, 6, 0], "protein": [4, 0, 0, 0]}
    tokens: dict[Modality, Tokens] = {}
    for modality, width in WIDTHS.items():
        lengths = torch.tensor(present[modality][:samples])
        hidden = torch.randn(samples, 6, width, generator=generator)
        is_token = torch.arange(6)[None] < lengths[:, None]
        tokens[modality] = Tokens(hidden * is_token.unsqueeze(-1), is_token)
    return tokens


def randomised(fusion: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return fusion


def pooled(fusion, tokens: dict[Modality, Tokens]) -> torch.Tensor:
    return torch.cat([masked_mean(part) for part in fusion(tokens)], dim=1)


Weights = dict[str, np.ndarray]
States = dict[Modality, np.ndarray]


def weights_of(module: torch.nn.Module) -> Weights:
    return {name: tensor.numpy().astype(np.float64) for name, tensor in module.state_dict().items()}


def under(weights: Weights, name: str) -> Weights:
    return {key.removeprefix(f"{name}."): w for key, w in weights.items() if key.startswith(f"{name}.")}


def linear(x: np.ndarray, weights: Weights) -> np.ndarray:
    return np.einsum("li,oi->lo", x, weights["weight"]) + weights["bias"]


def norm(x: np.ndarray, weights: Weights) -> np.ndarray:
    rows = [(row - row.mean()) / math.sqrt(((row - row.mean()) ** 2).mean() + 1e-5) for row in x]
    return np.array(rows) * weights["weight"] + weights["bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda one: one * 0.5 * (1 + math.erf(one / math.sqrt(2))))(x)


def attended(asking_LD: np.ndarray, asked_SC: np.ndarray, weights: Weights, heads: int) -> np.ndarray:
    """dense(softmax(q · k / sqrt(head width)) v), loops over heads and positions."""
    query, key, value = (
        linear(x, under(weights, name))
        for name, x in (("query", asking_LD), ("key", asked_SC), ("value", asked_SC))
    )
    width = query.shape[1] // heads
    found = np.zeros_like(query)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for position in range(len(query)):
            scores = [float(query[position, part] @ key[s, part]) / math.sqrt(width) for s in range(len(key))]
            exponents = np.exp(np.array(scores) - max(scores))
            found[position, part] = np.einsum("s,sd->d", exponents / exponents.sum(), value[:, part])
    return linear(found, under(weights, "dense"))


def golden_unit(query_LD: np.ndarray, context_SC: np.ndarray, weights: Weights, heads: int) -> np.ndarray:
    """One sample without padding, written from the equations; norms and feed-forward where it has them."""
    asking, asked = query_LD, context_SC
    if under(weights, "norm_tokens"):
        asking, asked = (
            norm(x, under(weights, name)) for name, x in (("norm_tokens", asking), ("norm_context", asked))
        )
    own = query_LD + attended(asking, asked, weights, heads)
    behind = under(weights, "feed_forward")
    if not behind:
        return own
    inner = norm(own, under(behind, "0")) if under(behind, "0") else own
    return own + linear(gelu(linear(inner, under(behind, "1"))), under(behind, "3"))


def golden_exchange(states: States, fusion, heads: int) -> States:
    """h'_dna = f(h_dna, h_rna, h_protein), …: modalities of length zero are left out."""
    for block in fusion.blocks:
        fresh = {}
        for modality, own in states.items():
            for other in MODALITIES if modality in block else ():
                if other != modality and len(states[other]) and len(own):
                    own = golden_unit(own, states[other], weights_of(block[modality][other]), heads)
            fresh[modality] = own
        states = fresh
    return states


def golden_resampled(latents: np.ndarray, context_SD: np.ndarray, blocks, heads: int) -> np.ndarray:
    """Each block: latents ask the tokens and themselves, all of it normed; then a feed-forward."""
    for block in blocks:
        weights = weights_of(block)
        normed = norm(latents, under(weights, "norm_latents"))
        both = normed
        if len(context_SD):
            both = np.concatenate([norm(context_SD, under(weights, "norm_tokens")), normed])
        latents = latents + attended(normed, both, weights, heads)
        behind = under(weights, "feed_forward")
        inner = gelu(linear(norm(latents, under(behind, "0")), under(behind, "1")))
        latents = latents + linear(inner, under(behind, "3"))
    return latents


def golden_perceiver_shared(states: States, fusion, heads: int) -> list[np.ndarray]:
    """All tokens at one width, marked, read together by the latents."""
    weights = weights_of(fusion)
    marked = [
        linear(own, under(weights, f"project.{m}")) + weights[f"modality_mark.{m}"]
        for m, own in states.items()
        if len(own)
    ]
    context = np.concatenate(marked) if marked else np.zeros((0, fusion.widths[0]))
    return [golden_resampled(weights["latents_MD"], context, fusion.blocks, heads)]


def golden_perceiver_per_modality(states: States, fusion, heads: int) -> list[np.ndarray]:
    """A resampler a modality, then the exchange between latents."""
    read = {
        m: golden_resampled(
            weights_of(fusion.resamplers[m])["latents_MD"], own, fusion.resamplers[m].blocks, heads
        )
        if len(own)
        else own
        for m, own in states.items()
    }
    return list(golden_exchange(read, fusion.exchange, heads).values())


def golden_convolved(x: np.ndarray, weights: Weights) -> np.ndarray:
    """x + conv(gelu(conv(norm(x)))), kernel 3, zeros outside."""
    inner = norm(x, under(weights, "norm"))
    for name, after in (("first", gelu), ("second", lambda y: y)):
        conv, padded = under(weights, name), np.pad(inner, ((1, 1), (0, 0)))
        rows = [np.einsum("ki,oik->o", padded[i : i + 3], conv["weight"]) for i in range(len(x))]
        inner = after(np.array(rows) + conv["bias"])
    return x + inner


def golden_c_abstractor(states: States, fusion, heads: int) -> list[np.ndarray]:
    """Convolve, average M slots along the sequence, convolve; then the exchange between the M tokens."""
    read = {}
    for modality, own in states.items():
        abstractor = fusion.abstractors[modality]
        weights, count = weights_of(abstractor), abstractor.latents
        if len(own):
            own = golden_convolved(own, under(weights, "before"))
            length = len(own)
            bounds = [(m * length // count, -(-(m + 1) * length // count)) for m in range(count)]
            own = np.stack([own[start:end].mean(axis=0) for start, end in bounds])
            own = golden_convolved(own, under(weights, "after"))
        read[modality] = own
    return list(golden_exchange(read, fusion.exchange, heads).values())


GOLDEN = {
    "cross_attention": lambda states, fusion, heads: [
        golden_exchange(states, fusion, heads)[m] for m in fusion.queries
    ],
    "concat": lambda states, fusion, heads: list(states.values()),
    "perceiver_shared": golden_perceiver_shared,
    "perceiver_per_modality": golden_perceiver_per_modality,
    "c_abstractor": golden_c_abstractor,
}


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize(
    ("name", "more"),
    [
        *((name, {}) for name in FUSION_NAMES),
        ("cross_attention", {"queries": ("dna",)}),
        ("cross_attention", {"queries": ("dna", "protein")}),
        ("cross_attention", {"pre_norm": True}),
        ("cross_attention", {"feed_forward": 2}),
        ("c_abstractor", {"pre_norm": True, "feed_forward": 1}),
    ],
    ids=str,
)
def test_a_fusion_is_what_its_equations_say(name: str, more: dict[str, Any], blocks: int) -> None:
    tokens = made_tokens()
    options = FusionOptions(heads=4, latents=3, blocks=blocks, **more)
    fusion = randomised(build_fusion(name, WIDTHS, options)).eval()
    with torch.no_grad():
        fused = fusion(tokens)
    for sample in range(4):
        states: States = {
            m: t.hidden_BLD[sample, t.is_token_BL[sample]].numpy().astype(np.float64)
            for m, t in tokens.items()
        }
        expected = GOLDEN[name](states, fusion, 4)
        for want, part in zip(expected, fused, strict=True):
            got = part.hidden_BLD[sample, part.is_token_BL[sample]].numpy()
            assert got.shape == want.shape
            np.testing.assert_allclose(got, want, atol=2e-5, rtol=2e-5)


def test_the_unit_has_the_published_shapes_and_nothing_else() -> None:
    unit = CrossAttention(width=12, context_width=8, options=FusionOptions(heads=2))
    shapes = {name: tuple(parameter.shape) for name, parameter in unit.named_parameters()}
    assert shapes == {
        "query.weight": (8, 12), "query.bias": (8,), "key.weight": (8, 8), "key.bias": (8,),
        "value.weight": (8, 8), "value.bias": (8,), "dense.weight": (12, 8), "dense.bias": (12,),
    }  # fmt: skip


@pytest.mark.parametrize(("heads", "width"), [(3, 8), (5, 12)])
def test_heads_that_do_not_divide_the_width_are_named_with_it(heads: int, width: int) -> None:
    with pytest.raises(ConfigError, match=f"{heads} heads do not divide the width {width}"):
        CrossAttention(width=4, context_width=width, options=FusionOptions(heads=heads))


def test_the_registry_and_the_configuration_know_the_same_names() -> None:
    assert tuple(FUSIONS) == FUSION_NAMES
    with pytest.raises(ConfigError, match="cross_attention"):
        build_fusion("crossattention", WIDTHS, FusionOptions())


class TestFusionContract:
    """What every fusion promises; a new one is checked by being in the registry."""

    @pytest.fixture(
        params=[
            *((name, {}) for name in FUSION_NAMES),
            ("cross_attention", {"queries": ("dna",)}),
            ("cross_attention", {"pre_norm": True, "feed_forward": 2, "dropout": 0.3}),
        ],
        ids=str,
    )
    def fusion(self, request: pytest.FixtureRequest) -> torch.nn.Module:
        name, more = request.param
        options = FusionOptions(heads=4, blocks=2, latents=3, **more)
        return randomised(build_fusion(name, WIDTHS, options)).eval()

    def test_widths_are_those_that_come_out(self, fusion) -> None:
        assert fusion.widths == tuple(part.hidden_BLD.shape[-1] for part in fusion(made_tokens()))

    def test_padding_never_leaks(self, fusion) -> None:
        tokens = made_tokens()
        spoiled = {
            m: Tokens(torch.where(t.is_token_BL.unsqueeze(-1), t.hidden_BLD, 1e4), t.is_token_BL)
            for m, t in tokens.items()
        }
        torch.testing.assert_close(pooled(fusion, spoiled), pooled(fusion, tokens))

    def test_a_sample_is_the_same_alone_in_a_crowd_and_in_any_order(self, fusion) -> None:
        tokens = made_tokens()
        together = pooled(fusion, tokens)
        for sample in range(4):
            alone = {
                m: Tokens(t.hidden_BLD[sample, None], t.is_token_BL[sample, None]) for m, t in tokens.items()
            }
            torch.testing.assert_close(pooled(fusion, alone)[0], together[sample])
        order = torch.tensor([2, 0, 3, 1])
        shuffled = {m: Tokens(t.hidden_BLD[order], t.is_token_BL[order]) for m, t in tokens.items()}
        torch.testing.assert_close(pooled(fusion, shuffled), together[order])

    def test_the_order_of_positions_does_not_matter(self, fusion) -> None:
        if isinstance(fusion, CAbstractorFusion):
            pytest.skip("it convolves along the sequence")
        tokens = made_tokens()
        turned = {m: Tokens(t.hidden_BLD.flip(1), t.is_token_BL.flip(1)) for m, t in tokens.items()}
        torch.testing.assert_close(pooled(fusion, turned), pooled(fusion, tokens), atol=1e-5, rtol=1e-5)

    def test_a_missing_modality_gives_no_gradient_and_no_nan(self, fusion) -> None:
        tokens = made_tokens()
        hidden = {m: t.hidden_BLD.clone().requires_grad_() for m, t in tokens.items()}
        result = pooled(fusion, {m: Tokens(hidden[m], t.is_token_BL) for m, t in tokens.items()})
        assert torch.isfinite(result).all()
        result.square().sum().backward()
        for modality, t in tokens.items():
            gradient = hidden[modality].grad
            assert (gradient[~t.is_token_BL] == 0).all()
            assert (gradient[t.is_token_BL] != 0).any()

    def test_every_parameter_learns(self, fusion) -> None:
        tokens = {m: Tokens(t.hidden_BLD.requires_grad_(), t.is_token_BL) for m, t in made_tokens().items()}
        pooled(fusion, tokens).square().sum().backward()
        still = [n for n, p in fusion.named_parameters() if p.grad is None or not (p.grad != 0).any()]
        assert [n for n in still if not n.endswith("key.bias")] == []  # softmax cancels a bias of all keys

    @pytest.mark.parametrize("name", FUSION_NAMES)
    def test_single_modalities_and_pairs(self, name: str) -> None:
        for modalities in (("rna",), ("dna", "protein")):
            model = IsoFormer(
                ModelConfig(fusion=name, modalities=modalities, heads=4, zero_start=False), WIDTHS, ["a", "b"]
            )
            assert model({m: made_tokens()[m] for m in modalities}).shape == (4, 2)


def test_a_missing_context_leaves_the_states_as_they_are() -> None:
    fusion = randomised(build_fusion("cross_attention", WIDTHS, FusionOptions(heads=4)))
    tokens = made_tokens()
    fused = dict(zip(MODALITIES, fusion(tokens), strict=True))
    torch.testing.assert_close(fused["rna"].hidden_BLD[2], tokens["rna"].hidden_BLD[2])


def test_masked_mean_is_zero_without_tokens() -> None:
    mean = masked_mean(Tokens(torch.full((1, 3, 2), 7.0), torch.zeros(1, 3, dtype=torch.bool)))
    assert mean.tolist() == [[0.0, 0.0]]


def test_only_those_who_ask_come_out_and_reach_the_head() -> None:
    config = ModelConfig(queries=("dna",), heads=4, zero_start=False)
    model = IsoFormer(config, WIDTHS, ["a", "b"])
    assert model.fusion.widths == (WIDTHS["dna"],) and model.head.in_features == WIDTHS["dna"]
    asking = {name.split(".")[3] for name in model.state_dict() if name.startswith("fusion.blocks.")}
    assert asking == {"dna"}
    assert model(made_tokens()).shape == (4, 2)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"queries": ["dna"], "fusion": "concat"}, r"queries \['dna'\] go with fusion cross_attention"),
        ({"queries": ["dna"], "modalities": ["rna"]}, r"must be some of the modalities \['rna'\]"),
        ({"queries": []}, "must be some of the modalities"),
    ],
)
def test_queries_that_cannot_ask_are_named(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        build(ModelConfig, settings)


@pytest.mark.parametrize("more", [{"pre_norm": True}, {"feed_forward": 4}, {"fusion_dropout": 0.1}], ids=str)
def test_options_of_units_need_units(more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="are of cross-attention units; concat has none"):
        build(ModelConfig, {"fusion": "concat", **more})
    config = build(ModelConfig, {"fusion": "c_abstractor", **more})
    assert config.with_fusion("concat") == ModelConfig(fusion="concat")
    assert config.with_fusion("cross_attention") == ModelConfig(**more)


def test_a_zero_start_is_the_pooled_states_whatever_the_units_have() -> None:
    config = ModelConfig(heads=4, pre_norm=True, feed_forward=2)
    model = IsoFormer(config, WIDTHS, ["a"]).eval()
    tokens = made_tokens()
    plain = torch.cat([masked_mean(t) for t in tokens.values()], dim=1)
    torch.testing.assert_close(pooled(model.fusion, tokens), plain)


def test_dropout_is_of_what_is_added_and_in_training_only() -> None:
    fusion = randomised(build_fusion("cross_attention", WIDTHS, FusionOptions(heads=4, dropout=0.5)))
    tokens = made_tokens()
    assert not torch.equal(pooled(fusion.train(), tokens), pooled(fusion, tokens))
    without = randomised(build_fusion("cross_attention", WIDTHS, FusionOptions(heads=4)))
    torch.testing.assert_close(pooled(fusion.eval(), tokens), pooled(without, tokens))
    dropped = fusion.train()(tokens)[1]
    torch.testing.assert_close(dropped.hidden_BLD[2], tokens["rna"].hidden_BLD[2])  # nothing to ask


@pytest.mark.parametrize("count", [1, 3, 16])
def test_the_adaptive_mean_is_torchs_over_each_samples_own_tokens(count: int) -> None:
    tokens = made_tokens()["rna"]
    pooled = adaptive_mean(tokens, count)
    for b, is_token_L in enumerate(tokens.is_token_BL):
        own_DL = tokens.hidden_BLD[b, is_token_L].T
        if own_DL.shape[1] == 0:
            assert not pooled.is_token_BL[b].any() and not pooled.hidden_BLD[b].any()
            continue
        expected_DM = torch.nn.functional.adaptive_avg_pool1d(own_DL, count)
        torch.testing.assert_close(pooled.hidden_BLD[b].T, expected_DM, rtol=1e-5, atol=1e-6)
