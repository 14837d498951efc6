"""The forward pass shared by ESM-2 and Nucleotide Transformer v2, on one flat token axis without padding.

In: token ids of all sequences end to end, and offsets. Out: hidden states after the final layer norm.
Attention runs sequence by sequence (runs of equal length as one batch), rotary positions restart at each
sequence, and the token-dropout scale is each sequence's own: a sequence never feels its neighbours.

Submodules bear the published names, so that state dicts load as they are. Used by `esm2.py`,
`nucleotide_transformer.py` and the pre-training job.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import cast

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from isoformer.encoders.registry import EncoderChoice
from isoformer.encoders.spec import Encoded, EncoderSpec, Packed
from isoformer.encoders.transformer_config import TransformerConfig
from isoformer.encoders.weights_files import (
    check_names_and_shapes,
    folder_digest,
    read_tensors,
    state_file,
    weights_folder,
)
from isoformer.errors import EncoderError

# T tokens of all sequences, B sequences, L tokens of one, D width, H heads, E width of a head, V vocabulary

START_DEVIATION = 0.02
_TRAINED_MASK_RATIO = 0.15 * 0.8  # the share of tokens that was <mask> while ESM-2 was trained
_PROJECTIONS = ("query", "key", "value")
_UNUSED = ("lm_head.", "contact_head.", "pooler.", "embeddings.position_")


class PackedTransformer(nn.Module):
    """Embedding, layers, final layer norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.ModuleDict(
            {"word_embeddings": nn.Embedding(config.vocab_size, config.hidden_size)}
        )
        self.encoder = nn.ModuleDict(
            {
                "layer": nn.Sequential(*(_Layer(config) for _ in range(config.num_hidden_layers))),
                "emb_layer_norm_after": nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps),
            }
        )

    def forward(self, token_ids_T: Tensor, offsets: list[int]) -> Tensor:
        """Hidden states (T, D). `offsets` has one entry more than there are sequences."""
        hidden_TD = self.embeddings["word_embeddings"](token_ids_T)
        if self.config.token_dropout:
            hidden_TD = self._scaled_for_masks(hidden_TD, token_ids_T, offsets)
        rotary = _rotary_tables(offsets, self.config, hidden_TD.device)
        for layer in cast(nn.Sequential, self.encoder["layer"]):
            hidden_TD = layer(hidden_TD, rotary, offsets)
        return self.encoder["emb_layer_norm_after"](hidden_TD)

    def _scaled_for_masks(self, hidden_TD: Tensor, token_ids_T: Tensor, offsets: list[int]) -> Tensor:
        """ESM-2's token dropout: masks embed as zero, the rest is scaled as if 12% had been masked."""
        is_mask_T = token_ids_T == self.config.mask_token_id
        lengths_B = torch.tensor(np.diff(offsets), device=token_ids_T.device)
        sequence_T = torch.repeat_interleave(torch.arange(len(lengths_B), device=lengths_B.device), lengths_B)
        masked_B = torch.zeros(len(lengths_B), device=lengths_B.device)
        masked_B = masked_B.index_add(0, sequence_T, is_mask_T.float())
        scale_B = (1 - _TRAINED_MASK_RATIO) / (1 - masked_B / lengths_B)
        scale_T = torch.where(is_mask_T, torch.zeros_like(scale_B[sequence_T]), scale_B[sequence_T])
        return hidden_TD * scale_T[:, None]


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


class PackedEncoder:
    """`Encoder` over a `PackedTransformer`.

    Evaluation mode, no gradients, special tokens left out of the output.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        model: PackedTransformer,
        *,
        special_ids: frozenset[int],
        weights_digest: str,
        device: str,
    ) -> None:
        self.spec = spec
        self.weights_digest = weights_digest
        self.model = model.to(device).eval().requires_grad_(False)
        self._special_ids = np.array(sorted(special_ids), dtype=np.int32)
        self._device = device

    def encode(self, packed: Packed) -> Encoded:
        if int(packed.token_ids.max()) >= self.model.config.vocab_size or int(packed.token_ids.min()) < 0:
            raise EncoderError(
                f"{self.spec.name}: token id outside the vocabulary of {self.model.config.vocab_size}"
            )
        token_ids_T = torch.from_numpy(packed.token_ids.astype(np.int64)).to(self._device)
        with torch.no_grad():
            hidden_TD = self.model(token_ids_T, packed.offsets.tolist())
        is_letter_T = ~np.isin(packed.token_ids, self._special_ids)
        kept_before = np.concatenate([[0], np.cumsum(is_letter_T)])
        return Encoded(
            hidden_TD[torch.from_numpy(np.flatnonzero(is_letter_T)).to(self._device)].float(),
            kept_before[packed.offsets].astype(np.int64),
        )


def load_packed_encoder(
    choice: EncoderChoice,
    spec: EncoderSpec,
    config: TransformerConfig,
    *,
    special_ids: frozenset[int],
    device: str,
) -> PackedEncoder:
    """The encoder that a choice names: the folder's weights, or random ones of its architecture."""
    if choice.random_seed is None:
        model = load_transformer(config, weights_folder(choice))
    else:
        model = random_transformer(config, choice.random_seed)
    digest = folder_digest(choice)
    return PackedEncoder(spec, model, special_ids=special_ids, weights_digest=digest, device=device)


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
    """Published weights. Tensors that only heads use are left out; any other misfit is an EncoderError."""
    file = state_file(folder)
    state = {name.removeprefix("esm."): tensor for name, tensor in read_tensors(file).items()}
    state = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith(_UNUSED) and not name.endswith("rotary_embeddings.inv_freq")
    }
    model = PackedTransformer(config)
    check_names_and_shapes(
        {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        file=file,
    )
    model.load_state_dict(state)
    return model


class _Layer(nn.Module):
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

    def forward(self, hidden_TD: Tensor, rotary: tuple[Tensor, Tensor], offsets: list[int]) -> Tensor:
        hidden_TD = hidden_TD + self._attention(hidden_TD, rotary, offsets)
        inner_TF = self.intermediate["dense"](self.LayerNorm(hidden_TD))
        if self.gated:
            gate_TF, value_TF = inner_TF.chunk(2, dim=-1)
            inner_TF = functional.silu(gate_TF) * value_TF
        else:
            inner_TF = functional.gelu(inner_TF)
        return hidden_TD + self.output["dense"](inner_TF)

    def _attention(self, hidden_TD: Tensor, rotary: tuple[Tensor, Tensor], offsets: list[int]) -> Tensor:
        normed_TD = self.attention["LayerNorm"](hidden_TD)
        project = cast(nn.ModuleDict, self.attention["self"])
        query_THE, key_THE, value_THE = (
            rearrange(project[name](normed_TD), "t (h e) -> t h e", h=self.heads)
            for name in ("query", "key", "value")
        )
        query_THE, key_THE = _rotated(query_THE, rotary), _rotated(key_THE, rotary)
        mixed_TD = torch.cat(
            [
                _attend(query_THE[start:end], key_THE[start:end], value_THE[start:end], length)
                for start, end, length in _runs_of_equal_length(offsets)
            ]
        )
        return cast(nn.ModuleDict, self.attention["output"])["dense"](mixed_TD)


def _attend(query_THE: Tensor, key_THE: Tensor, value_THE: Tensor, length: int) -> Tensor:
    """Attention within each of the sequences of one length that are laid end to end. (T, D)"""
    query, key, value = (
        rearrange(tensor, "(b l) h e -> b h l e", l=length) for tensor in (query_THE, key_THE, value_THE)
    )
    mixed_BHLE = functional.scaled_dot_product_attention(query, key, value)
    return rearrange(mixed_BHLE, "b h l e -> (b l) (h e)")


def _runs_of_equal_length(offsets: list[int]) -> list[tuple[int, int, int]]:
    """(start, end, length) of each run of neighbouring sequences of equal length."""
    runs: list[tuple[int, int, int]] = []
    start = 0
    for length, group in groupby(np.diff(offsets).tolist()):
        end = start + length * len(list(group))
        runs.append((start, end, length))
        start = end
    return runs


def _rotary_tables(
    offsets: list[int], config: TransformerConfig, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, 1, E) of each token's position in its own sequence; base 10000 as published."""
    head_width = config.hidden_size // config.num_attention_heads
    frequencies = 1.0 / (10000.0 ** (torch.arange(0, head_width, 2, dtype=torch.float32) / head_width))
    lengths = np.diff(offsets)
    positions_T = torch.from_numpy(np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)).float()
    angles_TE = torch.outer(positions_T, frequencies).repeat(1, 2)[:, None]
    return angles_TE.cos().to(device), angles_TE.sin().to(device)


def _rotated(tensor_THE: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = rotary
    first, second = tensor_THE.chunk(2, dim=-1)
    return tensor_THE * cosine + torch.cat([-second, first], dim=-1) * sine
