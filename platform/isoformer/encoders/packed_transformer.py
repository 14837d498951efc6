"""The forward pass of ESM-2, Nucleotide Transformer and RNA-FM, on one flat token axis without padding.

In: token ids of all sequences end to end, and offsets. Out: hidden states, of the layers asked for.
Attention stays within a sequence, positions restart at each, and the token-dropout scale is each sequence's
own: a sequence never feels its neighbours.

Submodules bear the published names, so that state dicts load as they are. Used by `packed_encoder.py` and the
pre-training job.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from isoformer.encoders.attention import Attend, per_sequence
from isoformer.encoders.transformer_config import TransformerConfig
from isoformer.encoders.weights_files import check_names_and_shapes, read_tensors, state_file

# T tokens of all sequences, B sequences, L tokens of one, D width, H heads, E width of a head, V vocabulary

START_DEVIATION = 0.02
_TRAINED_MASK_RATIO = 0.15 * 0.8  # the share of tokens that was <mask> while ESM-2 was trained
_PROJECTIONS = ("query", "key", "value")
_UNUSED = ("lm_head.", "contact_head.", "pooler.", "embeddings.position_ids")


@dataclass(frozen=True)
class Rotary:
    """Each token's rotation, as layers take it: (T, 1, E), (T, 1, E), and complex (T, 1, E/2)."""

    cosine: Tensor
    sine: Tensor
    turns: Tensor


@dataclass(frozen=True)
class Pack:
    """What the layers need besides the states. `rotary` is null where positions are learned."""

    offsets: list[int]
    rotary: Rotary | None
    attend: Attend


class PackedTransformer(nn.Module):
    """Embedding, layers, final layer norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.attend: Attend = per_sequence
        width, eps = config.hidden_size, config.layer_norm_eps
        embeddings: dict[str, nn.Module] = {"word_embeddings": nn.Embedding(config.vocab_size, width)}
        if not _is_rotary(config):
            embeddings["position_embeddings"] = nn.Embedding(config.max_position_embeddings, width)
        if config.emb_layer_norm_before:
            embeddings["layer_norm"] = nn.LayerNorm(width, eps=eps)
        self.embeddings = nn.ModuleDict(embeddings)
        self.encoder = nn.ModuleDict(
            {
                "layer": nn.Sequential(*(TransformerLayer(config) for _ in range(config.num_hidden_layers))),
                "emb_layer_norm_after": nn.LayerNorm(width, eps=eps),
            }
        )

    def forward(self, token_ids_T: Tensor, offsets: list[int], states: Sequence[int] = (-1,)) -> Tensor:
        """Mean of the hidden states asked for (T, D). `offsets` has one entry more than there are sequences.

        States are numbered as the library's `output_hidden_states`: 0 is the embedding's output, the last one
        comes after the final norm. No layer above the highest is run.
        """
        ((_, mean_TD),) = self.means(token_ids_T, offsets, [states])
        return mean_TD

    def means(
        self, token_ids_T: Tensor, offsets: list[int], choices: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, Tensor]]:
        """What `forward` gives for each of several choices of states, from one pass.

        Yields (place in `choices`, mean), each as soon as its highest layer has been run; until then a choice
        of several states costs one running sum, and a choice of one state nothing.
        """
        layers = cast(nn.Sequential, self.encoder["layer"])
        wanted = [sorted(range(len(layers) + 1)[state] for state in states) for states in choices]
        positions_T = _positions(offsets)
        hidden_TD = self._embedded(token_ids_T, offsets, positions_T)
        pack = Pack(offsets, self._rotary(positions_T, hidden_TD), self.attend)
        sums: dict[int, Tensor] = {}
        for index in range(max(states[-1] for states in wanted) + 1):
            hidden_TD = layers[index - 1](hidden_TD, pack) if index else hidden_TD
            takers = [place for place, states in enumerate(wanted) if index in states]
            state_TD = self._normed_if_last(hidden_TD, index) if takers else hidden_TD
            for place in takers:
                states = wanted[place]
                if len(states) > 1:
                    sums[place] = sums.get(place, 0.0) + state_TD
                if index == states[-1]:
                    yield place, sums.pop(place) / len(states) if len(states) > 1 else state_TD

    def _normed_if_last(self, hidden_TD: Tensor, index: int) -> Tensor:
        is_last = index == self.config.num_hidden_layers
        return self.encoder["emb_layer_norm_after"](hidden_TD) if is_last else hidden_TD

    def _embedded(self, token_ids_T: Tensor, offsets: list[int], positions_T: Tensor) -> Tensor:
        hidden_TD = self.embeddings["word_embeddings"](token_ids_T)
        if self.config.token_dropout:
            hidden_TD = self._scaled_for_masks(hidden_TD, token_ids_T, offsets)
        if "position_embeddings" in self.embeddings:
            first = self.config.pad_token_id + 1
            places_T = positions_T.to(hidden_TD.device) + first
            hidden_TD = hidden_TD + self.embeddings["position_embeddings"](places_T)
        if "layer_norm" in self.embeddings:
            hidden_TD = self.embeddings["layer_norm"](hidden_TD)
        return hidden_TD

    def _rotary(self, positions_T: Tensor, like: Tensor) -> Rotary | None:
        """Base 10000, as published; angles in float32 whatever the precision of the states."""
        if not _is_rotary(self.config):
            return None
        head_width = self.config.hidden_size // self.config.num_attention_heads
        frequencies = 1.0 / (10000.0 ** (torch.arange(0, head_width, 2, dtype=torch.float32) / head_width))
        angles = torch.outer(positions_T.float(), frequencies)[:, None].to(like.device)
        both = angles.repeat(1, 1, 2)
        return Rotary(both.cos().to(like), both.sin().to(like), torch.polar(torch.ones_like(angles), angles))

    def _scaled_for_masks(self, hidden_TD: Tensor, token_ids_T: Tensor, offsets: list[int]) -> Tensor:
        """ESM-2's token dropout: masks embed as zero, the rest is scaled as if 12% had been masked."""
        is_mask_T = token_ids_T == self.config.mask_token_id
        lengths_B = torch.tensor(np.diff(offsets), device=token_ids_T.device)
        sequence_T = torch.repeat_interleave(torch.arange(len(lengths_B), device=lengths_B.device), lengths_B)
        masked_B = torch.zeros(len(lengths_B), device=lengths_B.device)
        masked_B = masked_B.index_add(0, sequence_T, is_mask_T.float())
        scale_B = (1 - _TRAINED_MASK_RATIO) / (1 - masked_B / lengths_B)
        scale_T = torch.where(is_mask_T, torch.zeros_like(scale_B[sequence_T]), scale_B[sequence_T])
        return (hidden_TD * scale_T[:, None]).to(hidden_TD.dtype)


class MaskedLanguageHead(nn.Module):
    """Hidden states → logits over the vocabulary; the decoder is the embedding matrix (tied)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_TD: Tensor, embedding_VD: Tensor) -> Tensor:
        hidden_TD = self.layer_norm(functional.gelu(self.dense(hidden_TD)))
        return functional.linear(hidden_TD, embedding_VD, self.bias)


def random_transformer(config: TransformerConfig, seed: int) -> PackedTransformer:
    """Weights as the published models start.

    Normal(0, 0.02), biases zero, norms one; from their own generator.
    """
    model = PackedTransformer(config)
    initialise(model, seed)
    return model


def initialise(module: nn.Module, seed: int) -> None:
    """Fill a module's weights from a seed, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, nn.Linear | nn.Embedding):
                child.weight.normal_(0.0, START_DEVIATION, generator=generator)
            if isinstance(child, nn.Linear) and child.bias is not None:
                child.bias.zero_()


def load_transformer(config: TransformerConfig, folder: Path) -> PackedTransformer:
    """Published weights, as the ESM files name them, and as the library names them when it saves a model."""
    file = state_file(folder)
    state = {_own_name(name): tensor for name, tensor in read_tensors(file).items()}
    return filled_transformer(config, state, file=file)


def filled_transformer(
    config: TransformerConfig, state: dict[str, Tensor], *, file: Path
) -> PackedTransformer:
    """Tensors that only heads use are left out; any other misfit is an EncoderError."""
    unused = (*_UNUSED, "embeddings.position_embeddings") if _is_rotary(config) else _UNUSED
    state = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith(unused) and not name.endswith("rotary_embeddings.inv_freq")
    }
    model = PackedTransformer(config)
    check_names_and_shapes(
        {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        file=file,
    )
    model.load_state_dict(state)
    return model


def _own_name(name: str) -> str:
    name = name.removeprefix("esm.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


class TransformerLayer(nn.Module):
    """x + attention(norm x), then x + feed-forward(norm x)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        gated = config.gated_feed_forward
        self.heads = config.num_attention_heads
        self.gated = gated
        projections = {name: nn.Linear(width, width) for name in _PROJECTIONS}
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict(projections),
                "output": nn.ModuleDict({"dense": nn.Linear(width, width)}),
                "LayerNorm": nn.LayerNorm(width, eps=eps),
            }
        )
        self.intermediate = nn.ModuleDict(
            {"dense": nn.Linear(width, 2 * inner if gated else inner, bias=not gated)}
        )
        self.output = nn.ModuleDict({"dense": nn.Linear(inner, width, bias=not gated)})
        self.LayerNorm = nn.LayerNorm(width, eps=eps)

    def forward(self, hidden_TD: Tensor, pack: Pack) -> Tensor:
        hidden_TD = hidden_TD + self._attention(hidden_TD, pack)
        inner_TF = self.intermediate["dense"](self.LayerNorm(hidden_TD))
        if self.gated:
            gate_TF, value_TF = inner_TF.chunk(2, dim=-1)
            inner_TF = functional.silu(gate_TF) * value_TF
        else:
            inner_TF = functional.gelu(inner_TF)
        return hidden_TD + self.output["dense"](inner_TF)

    def _attention(self, hidden_TD: Tensor, pack: Pack) -> Tensor:
        normed_TD = self.attention["LayerNorm"](hidden_TD)
        project = cast(nn.ModuleDict, self.attention["self"])
        query_THE, key_THE, value_THE = (
            rearrange(project[name](normed_TD), "t (h e) -> t h e", h=self.heads)
            for name in ("query", "key", "value")
        )
        if pack.rotary is not None:
            query_THE, key_THE = _rotated(query_THE, pack.rotary), _rotated(key_THE, pack.rotary)
        mixed_TD = pack.attend(query_THE, key_THE, value_THE, pack.offsets)
        return cast(nn.ModuleDict, self.attention["output"])["dense"](mixed_TD)


def _is_rotary(config: TransformerConfig) -> bool:
    return config.position_embedding_type == "rotary"


def _positions(offsets: list[int]) -> Tensor:
    """Each token's position in its own sequence, from 0. (T,)"""
    return torch.from_numpy(np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets)))


def _rotated(tensor_THE: Tensor, rotary: Rotary) -> Tensor:
    first, second = tensor_THE.chunk(2, dim=-1)
    return tensor_THE * rotary.cosine + torch.cat([-second, first], dim=-1) * rotary.sine
