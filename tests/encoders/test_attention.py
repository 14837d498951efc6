"""Every route of attention, and the prepacked layer, against a plain softmax in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from isoformer.encoders import prepacked
from isoformer.encoders.attention import (
    PADDED,
    PER_SEQUENCE,
    VARIABLE_LENGTH,
    Attend,
    padded,
    per_sequence,
    route_for,
    runs_of_equal_length,
    variable_length,
)
from isoformer.encoders.packed_transformer import PackedTransformer, TransformerLayer, initialise
from isoformer.encoders.prepacked import PrepackedLayer
from isoformer.encoders.transformer_config import TransformerConfig

LENGTHS = ([1], [5], [300], [1, 1, 7], [40, 3, 3, 3, 128], [255, 256, 257, 2], [600, 500, 500])
HEADS, HEAD_WIDTH = 3, 16


def offsets_of(lengths: list[int]) -> list[int]:
    return [0, *torch.tensor(lengths).cumsum(0).tolist()]


def query_key_value(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(sum(lengths), HEADS, HEAD_WIDTH, generator=generator) for _ in range(3))
    return 2 * query, key, value


def plain(query_THE: Tensor, key_THE: Tensor, value_THE: Tensor, offsets: list[int]) -> Tensor:
    mixed = []
    for start, end in itertools.pairwise(offsets):
        query, key, value = (one[start:end].double() for one in (query_THE, key_THE, value_THE))
        scores_HQK = torch.einsum("qhe,khe->hqk", query, key) / math.sqrt(query.shape[-1])
        mixed.append(torch.einsum("hqk,khe->qhe", torch.softmax(scores_HQK, dim=-1), value).flatten(1))
    return torch.cat(mixed)


def assert_near(got: Tensor, exact: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("attend", [per_sequence, padded])
def test_routes_are_the_plain_softmax(attend: Attend, lengths: list[int]) -> None:
    tensors, offsets = query_key_value(lengths), offsets_of(lengths)
    assert_near(attend(*tensors, offsets), plain(*tensors, offsets))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="variable-length attention needs a CUDA device")
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_variable_length_is_the_plain_softmax(lengths: list[int], dtype: torch.dtype, bound: float) -> None:
    """Inputs are rounded first, so that only the kernel's own rounding counts."""
    query, key, value = (one.to("cuda", dtype) for one in query_key_value(lengths))
    got = variable_length(query, key, value, offsets_of(lengths))
    assert_near(got.cpu(), plain(query.cpu(), key.cpu(), value.cpu(), offsets_of(lengths)), bound)


def test_a_sequence_does_not_see_its_neighbours() -> None:
    lengths, offsets = [9, 30, 4], offsets_of([9, 30, 4])
    query, key, value = query_key_value(lengths)
    others = [one.clone() for one in (query, key, value)]
    for one in others:
        one[:9] += 5
        one[39:] -= 5
    for attend in (per_sequence, padded):
        first, second = attend(query, key, value, offsets), attend(*others, offsets)
        torch.testing.assert_close(first[9:39], second[9:39], rtol=1e-6, atol=1e-6)
        assert not torch.allclose(first[:9], second[:9])


@pytest.mark.skipif(not prepacked.is_available(), reason="this build of PyTorch has no oneDNN products")
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("positions", ["rotary", "absolute"])
@pytest.mark.parametrize("gated", [True, False])
def test_the_prepacked_layer_is_the_plain_one(positions: str, gated: bool, lengths: list[int]) -> None:
    model = small_transformer(positions, gated)
    layer = model.encoder["layer"][0]
    assert isinstance(layer, TransformerLayer)
    hidden_TD = torch.randn(sum(lengths), 48, generator=torch.Generator().manual_seed(2))
    packs: list[object] = []
    layer.register_forward_pre_hook(lambda _, inputs: packs.append(inputs[1]))
    with torch.inference_mode():
        model(torch.zeros(sum(lengths), dtype=torch.int64), offsets_of(lengths))
        got = PrepackedLayer(layer)(hidden_TD, packs[0])
    exact = plain_layer(layer.double(), hidden_TD.double(), offsets_of(lengths), positions == "rotary")
    assert_near(got, exact, 1e-5)


def small_transformer(positions: str, gated: bool) -> PackedTransformer:
    config = TransformerConfig.model_validate(
        {
            "vocab_size": 5,
            "hidden_size": HEADS * HEAD_WIDTH,
            "num_hidden_layers": 1,
            "num_attention_heads": HEADS,
            "intermediate_size": 40,
            "max_position_embeddings": 700,
            "layer_norm_eps": 1e-5,
            "mask_token_id": 4,
            "position_embedding_type": positions,
            "gated_feed_forward": gated,
        }
    )
    model = PackedTransformer(config)
    initialise(model, 3)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@torch.no_grad()
def plain_layer(layer: TransformerLayer, hidden_TD: Tensor, offsets: list[int], is_rotary: bool) -> Tensor:
    """One layer from its weights, in float64."""
    weights = dict(layer.named_parameters())

    def linear(values: Tensor, name: str) -> Tensor:
        return functional.linear(values, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(values: Tensor, name: str) -> Tensor:
        return functional.layer_norm(
            values, (values.shape[-1],), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5
        )

    def rotated(values_THE: Tensor) -> Tensor:  # by angles in float32, as the published models have them
        half = HEAD_WIDTH // 2
        lengths = torch.tensor(offsets).diff().tolist()
        positions = torch.cat([torch.arange(length) for length in lengths]).float()
        frequencies = 1 / 10000.0 ** (torch.arange(half).float() / half)
        angles = torch.outer(positions, frequencies).double()[:, None]
        pairs = torch.complex(values_THE[..., :half], values_THE[..., half:])
        turned = pairs * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([turned.real, turned.imag], dim=-1)

    normed = norm(hidden_TD, "attention.LayerNorm")
    query, key, value = (
        linear(normed, f"attention.self.{name}").unflatten(-1, (HEADS, HEAD_WIDTH))
        for name in ("query", "key", "value")
    )
    if is_rotary:
        query, key = rotated(query), rotated(key)
    hidden_TD = hidden_TD + linear(plain(query, key, value, offsets), "attention.output.dense")
    inner = linear(norm(hidden_TD, "LayerNorm"), "intermediate.dense")
    if layer.gated:
        gate, up = inner.chunk(2, dim=-1)
        inner = gate * torch.sigmoid(gate) * up
    else:
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    return hidden_TD + linear(inner, "output.dense")


def test_runs_of_equal_length() -> None:
    assert runs_of_equal_length([0, 3, 6, 8, 11]) == [(0, 6, 3), (6, 8, 2), (8, 11, 3)]


def test_the_route_on_a_cpu_is_a_call_a_sequence() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert route_for("cpu", dtype, 64) is PER_SEQUENCE


@pytest.mark.parametrize(
    ("capability", "dtype", "head_width", "expected"),
    [
        ((8, 0), torch.bfloat16, 64, VARIABLE_LENGTH),
        ((9, 0), torch.float16, 32, VARIABLE_LENGTH),
        ((8, 0), torch.float32, 64, PADDED),
        ((8, 0), torch.bfloat16, 20, PADDED),
        ((7, 5), torch.float16, 64, PADDED),
    ],
)
def test_the_route_on_cuda_is_variable_length_where_flash_attention_can(
    capability: tuple[int, int],
    dtype: torch.dtype,
    head_width: int,
    expected: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert route_for("cuda", dtype, head_width) is expected
