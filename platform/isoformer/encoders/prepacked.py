"""The layers of `packed_transformer.py` for inference on a CPU in float32, as fast as oneDNN allows.

Weights are laid out once as oneDNN's kernels read them; GELU and the residual are fused into the products;
query, key and value are one product. Rotary positions are one complex product: the query's and key's rows are
reordered so that each pair of features lies side by side, which changes no score.

Same numbers as the plain layers to float32 rounding (a test); used where `is_available`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Final, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from isoformer.encoders.attention import per_sequence

if TYPE_CHECKING:
    from isoformer.encoders.packed_transformer import Pack, TransformerLayer

# T tokens of all sequences, L tokens of one, D width, H heads, E width of a head, F inner width

_TOKENS_EXPECTED: Final = 1024

# a kernel is compiled for every number of tokens, 1 to 2 MB each, and a pack has another than the one before;
# read by oneDNN and by PyTorch's layer over it when the first product runs
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "16")  # of 1024; one pass has 4 shapes of products


@cache
def is_available() -> bool:
    """Whether this build of PyTorch has oneDNN's prepacked products for this CPU."""
    return bool(torch.backends.mkldnn.is_available()) and all(  # type: ignore[no-untyped-call]
        hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
    )


class PrepackedLayer(nn.Module):
    """What a `TransformerLayer` computes, from its weights."""

    def __init__(self, layer: TransformerLayer) -> None:
        super().__init__()
        weights = {name: tensor.detach() for name, tensor in layer.named_parameters()}
        self._heads, self._gated = layer.heads, layer.gated
        self._norms = (layer.attention["LayerNorm"], layer.LayerNorm)
        self._query_key_value = _query_key_value(weights, layer.heads)
        self._attention_output = Product.of(weights, "attention.output.dense")
        self._inner = Product.of(weights, "intermediate.dense")
        self._output = Product.of(weights, "output.dense")

    def forward(self, hidden_TD: Tensor, pack: Pack) -> Tensor:
        first_norm, second_norm = self._norms
        mixed_TD = self._attention(first_norm(hidden_TD), pack)
        hidden_TD = self._attention_output.plus(mixed_TD, hidden_TD)
        normed_TD = second_norm(hidden_TD)
        if self._gated:
            gate_TF, value_TF = self._inner(normed_TD).chunk(2, dim=-1)
            return self._output.plus(functional.silu(gate_TF).mul_(value_TF), hidden_TD)
        return self._output.plus(self._inner.gelu(normed_TD), hidden_TD)

    def _attention(self, normed_TD: Tensor, pack: Pack) -> Tensor:
        tokens, width = normed_TD.shape
        heads, head_width = self._heads, width // self._heads
        projected = self._query_key_value(normed_TD).view(tokens, 3 * heads, head_width)
        if pack.rotary is not None:
            pairs = torch.view_as_complex(projected.view(tokens, 3 * heads, head_width // 2, 2))
            pairs[:, : 2 * heads].mul_(pack.rotary.turns)
        query_THE, key_THE, value_THE = torch.split(projected, heads, dim=1)
        return per_sequence(query_THE, key_THE, value_THE, pack.offsets, scale=1.0)


class Product(nn.Module):
    """x @ weight.T + bias, with what follows it fused in."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), _TOKENS_EXPECTED)
        self._bias = None if bias_O is None else bias_O.contiguous()

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], name: str) -> Self:
        return cls(weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def forward(self, inputs_TI: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(inputs_TI, self._weight, self._bias, "none", [], "")

    def gelu(self, inputs_TI: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(inputs_TI, self._weight, self._bias, "gelu", [], "none")

    def plus(self, inputs_TI: Tensor, residual_TO: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.binary(
            inputs_TI, residual_TO, self._weight, self._bias, "add"
        )


def _query_key_value(weights: Mapping[str, Tensor], heads: int) -> Product:
    """One product for all three; queries come out scaled, queries and keys with rotary pairs side by side."""
    head_width = len(weights["attention.self.query.weight"]) // heads
    order = _side_by_side(heads, head_width)

    def joined(kind: str) -> Tensor:
        query, key, value = (weights[f"attention.self.{part}.{kind}"] for part in ("query", "key", "value"))
        return torch.cat([query[order] * head_width**-0.5, key[order], value])

    return Product(joined("weight"), joined("bias"))


def _side_by_side(heads: int, head_width: int) -> Tensor:
    """Row order in which feature i of a head is followed by its rotary partner, i + head_width / 2."""
    within = np.arange(head_width).reshape(2, -1).T.reshape(-1)
    return torch.from_numpy((np.arange(heads)[:, None] * head_width + within).reshape(-1))
