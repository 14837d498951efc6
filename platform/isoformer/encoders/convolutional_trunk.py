"""What Enformer's and Borzoi's networks share: residuals, attention over relative positions, the transformer,
loading, and the encoder that runs a network window by window.

Submodules bear the published names, so that state dicts load as they are. Dropout has no part here, not even
where the network is trained: an identity holds its place where a later layer's number depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from isoformer.encoders.fixed_window import LETTERS_PER_TOKEN, query_blocks
from isoformer.encoders.letters import NUCLEOTIDES, split_letters
from isoformer.encoders.registry import EncoderChoice
from isoformer.encoders.spec import Encoded, EncoderSpec, Packed
from isoformer.encoders.weights_files import (
    check_names_and_shapes,
    folder_digest,
    read_tensors,
    state_file,
    weights_folder,
)
from isoformer.errors import EncoderError

# B sequences, C columns or channels, L positions, D width, H heads, E width of a head,
# R = 2L - 1 distances, F features

_PRECISIONS: Final = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
_TRAINING_ONLY: Final = ".num_batches_tracked"
_SEQUENCES_AT_ONCE: Final = 4
"""On an accelerator. On a CPU one window fills the cores, and gigabytes."""


class Residual(nn.Module):
    """x + fn(x)"""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.fn(hidden)


class RelativeAttention(nn.Module):
    """Attention whose scores add a key's content and its distance (Transformer-XL; Enformer, Methods).

    score(i, j) = (q_i / √E + content bias) · k_j + (q_i / √E + position bias) · r_(j - i), where r is a
    projection of fixed features of the distance. `features_RF`: those of distances 1 - L … L - 1.
    """

    features_RF: Tensor

    def __init__(self, dim: int, heads: int, *, key: int, value: int, features_RF: Tensor) -> None:
        super().__init__()
        self.heads = heads
        self.scale = key**-0.5
        self.to_q = nn.Linear(dim, key * heads, bias=False)
        self.to_k = nn.Linear(dim, key * heads, bias=False)
        self.to_v = nn.Linear(dim, value * heads, bias=False)
        self.to_out = nn.Linear(value * heads, dim)
        self.to_rel_k = nn.Linear(features_RF.shape[1], key * heads, bias=False)
        self.rel_content_bias = nn.Parameter(torch.zeros(1, heads, 1, key))
        self.rel_pos_bias = nn.Parameter(torch.zeros(1, heads, 1, key))
        self.register_buffer("features_RF", features_RF, persistent=False)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        query, key, value = (
            rearrange(project(hidden_BLD), "b l (h e) -> b h l e", h=self.heads)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        query = query * self.scale
        distance_keys_HER = rearrange(self.to_rel_k(self.features_RF), "r (h e) -> h e r", h=self.heads)
        mixed_BHLE = torch.cat(
            [
                functional.scaled_dot_product_attention(
                    query[:, :, rows] + self.rel_content_bias,
                    key,
                    value,
                    attn_mask=_by_key(query[:, :, rows] + self.rel_pos_bias, distance_keys_HER, rows.start),
                    scale=1.0,
                )
                for rows in query_blocks(query.shape[2])
            ],
            dim=2,
        )
        return self.to_out(rearrange(mixed_BHLE, "b h l e -> b l (h e)"))


def transformer(depth: int, dim: int, eps: float, attention: Callable[[], nn.Module]) -> nn.Sequential:
    """Layers of x + attention(norm x), then x + feed-forward(norm x)."""
    return nn.Sequential(
        *(
            nn.Sequential(
                Residual(nn.Sequential(nn.LayerNorm(dim, eps=eps), attention())),
                Residual(
                    nn.Sequential(
                        nn.LayerNorm(dim, eps=eps),
                        nn.Linear(dim, 2 * dim),
                        nn.Identity(),
                        nn.ReLU(),
                        nn.Linear(2 * dim, dim),
                    )
                ),
            )
            for _ in range(depth)
        )
    )


def with_sign(features_RF: Tensor, distances_R: Tensor) -> Tensor:
    """Features of the distance's size, then the same times its sign."""
    return torch.cat([features_RF, torch.sign(distances_R)[:, None] * features_RF], dim=-1)


def cropped(hidden_BLD: Tensor, length: int) -> Tensor:
    """The middle `length` positions."""
    trim = (hidden_BLD.shape[1] - length) // 2
    return hidden_BLD[:, trim : trim + length]


class WindowEncoder:
    """A network that takes letters as columns (B, 4, L) and gives (B, positions, D), run a few at a time.

    A letter that is not A C G T is a column of zeros, as in the published packages.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        model: nn.Module,
        *,
        weights_digest: str,
        device: str,
        precision: str,
        trainable: bool = False,
    ) -> None:
        dtype = _PRECISIONS[precision]
        self.spec = spec
        self.trainable = trainable
        self.weights_digest = weights_digest
        self.model = model.eval().to(device=device, dtype=dtype)
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.float()  # running variances leave the range of float16
        self._columns = torch.eye(len(NUCLEOTIDES) + 1, len(NUCLEOTIDES), device=device, dtype=dtype)
        self._at_once = 1 if device == "cpu" else _SEQUENCES_AT_ONCE

    def encode(self, packed: Packed) -> Encoded:
        sequences = len(packed.offsets) - 1
        if not np.array_equal(packed.offsets, np.arange(sequences + 1) * self.spec.max_tokens):
            raise EncoderError(f"{self.spec.name}: every sequence must have {self.spec.max_tokens} tokens")
        codes = split_letters(packed.token_ids, NUCLEOTIDES, LETTERS_PER_TOKEN).reshape(sequences, -1)
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            hidden = [self._forward(chunk) for chunk in torch.split(torch.from_numpy(codes), self._at_once)]
        hidden_BLD = torch.cat(hidden)
        positions = hidden_BLD.shape[1]
        return Encoded(hidden_BLD.flatten(0, 1).float(), np.arange(sequences + 1, dtype=np.int64) * positions)

    def _forward(self, codes_BL: Tensor) -> Tensor:
        device = next(self.model.parameters()).device  # a trainable encoder moves with its model
        return self.model(self._columns.to(device)[codes_BL.to(device)].transpose(1, 2))


@dataclass(frozen=True)
class Layout:
    """How a published file departs from our names.

    `unused`: prefixes of tensors that only heads use. `renamed`: prefixes under which a file may hold tensors
    instead, or once more, and what they are here.
    """

    unused: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)

    def name(self, published: str) -> str:
        for prefix, instead in self.renamed.items():
            if published.startswith(prefix):
                return instead + published.removeprefix(prefix)
        return published


def load_window_encoder(
    choice: EncoderChoice,
    spec: EncoderSpec,
    build: Callable[[], nn.Module],
    *,
    layout: Layout,
    device: str,
    trainable: bool = False,
) -> WindowEncoder:
    """The encoder that a choice names: the folder's weights, or random ones.

    EncoderError where a tensor is missing, of another shape or not known.
    """
    digest = folder_digest(choice)
    if choice.random_seed is None:
        file = state_file(weights_folder(choice))
        state = _published_state(file, layout)
        model = build()
        _fill(model, state, file)
    else:
        model = build()
        _initialise(model, choice.random_seed)
    return WindowEncoder(
        spec,
        model,
        weights_digest=digest,
        device=device,
        precision=choice.precision,
        trainable=trainable,
    )


def _by_key(query_BHQE: Tensor, distance_keys_HER: Tensor, start: int) -> Tensor:
    """What the distance adds to the scores of Q queries, the first at `start`, with each of the L keys.

    Only the L + Q - 1 distances that these queries see are scored. Each query sees key 0 one distance earlier
    than the query before: rows that are one value shorter, from Q - 1 on, are aligned by key.
    """
    queries, length = query_BHQE.shape[2], (distance_keys_HER.shape[-1] + 1) // 2
    first = length - start - queries
    scores_BHQR = query_BHQE @ distance_keys_HER[..., first : first + length + queries - 1]
    *outer, step, _ = scores_BHQR.stride()
    size = (*query_BHQE.shape[:3], length)
    return scores_BHQR.as_strided(size, (*outer, step - 1, 1), queries - 1).contiguous()


def _published_state(file: Path, layout: Layout) -> dict[str, Tensor]:
    """The file's tensors under our names, without those of heads and what only training counts."""
    state: dict[str, Tensor] = {}
    for published, tensor in read_tensors(file).items():
        name = layout.name(published)
        if name.startswith(layout.unused) or name.endswith(_TRAINING_ONLY):
            continue
        if name in state and not torch.equal(state[name], tensor):
            other = " and ".join(prefix for prefix, ours in layout.renamed.items() if name.startswith(ours))
            raise EncoderError(f"{file}: {name} has two values, one of them under {other}; they must be one")
        state[name] = tensor
    return state


def _fill(model: nn.Module, state: Mapping[str, Tensor], file: Path) -> None:
    expected = {
        name: tensor for name, tensor in model.state_dict().items() if not name.endswith(_TRAINING_ONLY)
    }
    shapes, found = (
        {name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (expected, state)
    )
    check_names_and_shapes(shapes, found, file=file)
    model.load_state_dict(state, strict=False, assign=True)


def _initialise(model: nn.Module, seed: int) -> None:
    """Normal weights that keep the variance, biases zero, norms one; from their own generator."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
