"""Fusions: the paper's equations to the number, and one contract that every fusion keeps."""

from __future__ import annotations

import math

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


def golden_unit(query_LD, context_SC, weights: dict[str, np.ndarray], heads: int) -> np.ndarray:
    """One sample without padding, loops over heads: written from the equations."""

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return np.einsum("li,oi->lo", x, weights[f"{name}.weight"]) + weights[f"{name}.bias"]

    query, key, value = linear("query", query_LD), linear("key", context_SC), linear("value", context_SC)
    width = query.shape[1] // heads
    attended = np.zeros_like(query)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for position in range(len(query)):
            scores = [float(query[position, part] @ key[s, part]) / math.sqrt(width) for s in range(len(key))]
            exponents = np.exp(np.array(scores) - max(scores))
            attended[position, part] = np.einsum("s,sd->d", exponents / exponents.sum(), value[:, part])
    return query_LD + linear("dense", attended)


def golden_fusion(states: dict[Modality, np.ndarray], fusion, heads: int) -> dict[Modality, np.ndarray]:
    """h'_dna = f(h_dna, h_rna, h_protein), …: modalities of length zero are left out."""
    for block in fusion.blocks:
        fresh = {}
        for modality, own in states.items():
            for other in MODALITIES if modality in block else ():
                if other != modality and len(states[other]) and len(own):
                    weights = {
                        k: v.numpy().astype(np.float64)
                        for k, v in block[modality][other].state_dict().items()
                    }
                    own = golden_unit(own, states[other], weights, heads)
            fresh[modality] = own
        states = fresh
    return states


@pytest.mark.parametrize("queries", [None, ("dna",), ("dna", "protein")])
@pytest.mark.parametrize("blocks", [1, 2])
def test_cross_attention_is_the_papers(blocks: int, queries: tuple[Modality, ...] | None) -> None:
    tokens = made_tokens()
    options = FusionOptions(heads=4, blocks=blocks, queries=queries)
    fusion = randomised(build_fusion("cross_attention", WIDTHS, options))
    with torch.no_grad():
        fused = fusion(tokens)
    for sample in range(4):
        states = {
            m: t.hidden_BLD[sample, t.is_token_BL[sample]].numpy().astype(np.float64)
            for m, t in tokens.items()
        }
        expected = golden_fusion(states, fusion, heads=4)
        for modality, part in zip(queries or MODALITIES, fused, strict=True):
            got = part.hidden_BLD[sample, part.is_token_BL[sample]].numpy()
            np.testing.assert_allclose(got, expected[modality], atol=2e-5)


def test_the_unit_has_the_published_shapes_and_nothing_else() -> None:
    unit = CrossAttention(width=12, context_width=8, heads=2)
    shapes = {name: tuple(parameter.shape) for name, parameter in unit.named_parameters()}
    assert shapes == {
        "query.weight": (8, 12), "query.bias": (8,), "key.weight": (8, 8), "key.bias": (8,),
        "value.weight": (8, 8), "value.bias": (8,), "dense.weight": (12, 8), "dense.bias": (12,),
    }  # fmt: skip


@pytest.mark.parametrize(("heads", "width"), [(3, 8), (5, 12)])
def test_heads_that_do_not_divide_the_width_are_named_with_it(heads: int, width: int) -> None:
    with pytest.raises(ConfigError, match=f"{heads} heads do not divide the width {width}"):
        CrossAttention(width=4, context_width=width, heads=heads)


def test_the_registry_and_the_configuration_know_the_same_names() -> None:
    assert tuple(FUSIONS) == FUSION_NAMES
    with pytest.raises(ConfigError, match="cross_attention"):
        build_fusion("crossattention", WIDTHS, FusionOptions())


class TestFusionContract:
    """What every fusion promises; a new one is checked by being in the registry."""

    @pytest.fixture(params=[*((name, None) for name in FUSION_NAMES), ("cross_attention", ("dna",))], ids=str)
    def fusion(self, request: pytest.FixtureRequest) -> torch.nn.Module:
        name, queries = request.param
        options = FusionOptions(heads=4, blocks=2, latents=3, queries=queries)
        return randomised(build_fusion(name, WIDTHS, options))

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
