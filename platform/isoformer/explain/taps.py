"""Where a gradient is taken: an encoder's first continuous states, put in from outside.

A transformer's tap is the output of its token embedding; that of a network that reads a window is its
letters' columns (A C G T). A tap gives the states of the real sequence and of a baseline, and encodes any
states that stand in their place, S copies at once, with the graph.

Shapes: S copies, T tokens (columns of a window), D width of what is put in, L letters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isoformer.encoders.convolutional_trunk import WindowEncoder
from isoformer.encoders.letters import NUCLEOTIDES, split_letters
from isoformer.encoders.packed_encoder import PackedEncoder
from isoformer.encoders.packed_transformer import PackedTransformer
from isoformer.encoders.spec import Encoded, Packed, Tokenizer
from isoformer.encoders.trainable import TrainableEncoder
from isoformer.errors import EncoderError
from isoformer.explain.config import Baseline
from isoformer.explain.regions import NO_SPAN, token_spans
from isoformer.schema import Modality

_UNKNOWN_LETTER = {"dna": "N", "rna": "N", "protein": "X"}


class Tap(Protocol):
    """One sequence of one modality.

    `real`, `baseline`: (T, D). `spans`: letters of each token (T, 2), -1 for special tokens.
    """

    @property
    def modality(self) -> Modality: ...
    @property
    def real(self) -> Tensor: ...
    @property
    def baseline(self) -> Tensor: ...
    @property
    def spans(self) -> NDArray[np.int64]: ...
    def encode(self, given_STD: Tensor) -> Encoded: ...


def tap_of(
    encoder: TrainableEncoder, tokenizer: Tokenizer, sequence: str, modality: Modality, baseline: Baseline
) -> Tap:
    """EncoderError where the encoder reads the sequence in several windows, or has no such baseline."""
    if isinstance(encoder.encoder, WindowEncoder):
        return ColumnTap.of(encoder.encoder, tokenizer, sequence, modality)
    return TokenTap.of(encoder, tokenizer, sequence, modality, baseline)


@dataclass(frozen=True, eq=False)
class TokenTap:
    """The token embedding's output. Special tokens are the same in the baseline.

    Baselines: `unknown`, the embedding of N or X at every position; `mask`, that of the mask token, which
    ESM-2 reads as zeros; `zero`. Layer norms bring states next to zero to full size, so that the way from
    `zero` is all at its beginning: many steps, or another baseline.
    """

    encoder: TrainableEncoder
    modality: Modality
    token_ids: NDArray[np.int32]
    real: Tensor
    baseline: Tensor
    spans: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        encoder: TrainableEncoder,
        tokenizer: Tokenizer,
        sequence: str,
        modality: Modality,
        baseline: Baseline,
    ) -> TokenTap:
        network = encoder.network
        if not isinstance(encoder.encoder, PackedEncoder) or not isinstance(network, PackedTransformer):
            raise EncoderError(f"{encoder.spec.name}: has no token embedding to take a gradient at")
        token_ids = tokenizer(sequence).token_ids
        if len(token_ids) > encoder.spec.max_tokens:
            raise EncoderError(
                f"{encoder.spec.name}: reads {modality} of {len(token_ids)} tokens in several windows; a "
                f"gradient can be taken of at most {encoder.spec.max_tokens}"
            )
        spans_T2 = token_spans(tokenizer, sequence, modality)
        embedding = cast(nn.Embedding, network.embeddings["word_embeddings"])
        ids_T = torch.from_numpy(token_ids.astype(np.int64)).to(embedding.weight.device)
        real_TD = embedding(ids_T).detach()
        baseline_D = _baseline(network, tokenizer, modality, baseline)
        is_own_T1 = torch.from_numpy(spans_T2[:, :1] != NO_SPAN).to(real_TD.device)
        baseline_TD = torch.where(is_own_T1, baseline_D, real_TD)
        return cls(encoder, modality, token_ids, real_TD, baseline_TD, spans_T2)

    def encode(self, given_STD: Tensor) -> Encoded:
        copies, tokens = given_STD.shape[:2]
        packed = Packed(np.tile(self.token_ids, copies), np.arange(copies + 1, dtype=np.int64) * tokens)
        network = self.encoder.network
        assert isinstance(network, PackedTransformer)
        with _put_in(network, given_STD.flatten(0, 1)):
            return self.encoder(packed)


@dataclass(frozen=True, eq=False)
class ColumnTap:
    """A window's letters as columns. The baseline is N, a column of zeros, whatever baseline is asked for."""

    encoder: WindowEncoder
    modality: Modality
    real: Tensor
    baseline: Tensor
    spans: NDArray[np.int64]

    @classmethod
    def of(cls, encoder: WindowEncoder, tokenizer: Tokenizer, sequence: str, modality: Modality) -> ColumnTap:
        token_ids = tokenizer(sequence).token_ids
        codes_T = torch.from_numpy(split_letters(token_ids, NUCLEOTIDES, len(sequence) // len(token_ids)))
        device = next(encoder.model.parameters()).device
        columns_TD = torch.eye(len(NUCLEOTIDES) + 1, len(NUCLEOTIDES), device=device)[codes_T.to(device)]
        place = np.arange(len(sequence))
        return cls(
            encoder,
            modality,
            columns_TD,
            torch.zeros_like(columns_TD),
            np.stack([place, place + 1], axis=1),
        )

    def encode(self, given_STD: Tensor) -> Encoded:
        states = [self.encoder.model(one_TD.T[None]) for one_TD in given_STD]
        offsets = np.cumsum([0, *(one_BLD.shape[1] for one_BLD in states)]).astype(np.int64)
        return Encoded(torch.cat(states, dim=1)[0].float(), offsets)


class _Given(nn.Module):
    """In the place of an embedding: what is given, whatever the tokens are."""

    def __init__(self, given_TD: Tensor) -> None:
        super().__init__()
        self.weight = given_TD  # its device is the encoder's

    def forward(self, token_ids_T: Tensor) -> Tensor:
        assert len(token_ids_T) == len(self.weight)
        return self.weight


@contextmanager
def _put_in(network: PackedTransformer, given_TD: Tensor) -> Iterator[None]:
    before = network.embeddings["word_embeddings"]
    network.embeddings["word_embeddings"] = _Given(given_TD)
    try:
        yield
    finally:
        network.embeddings["word_embeddings"] = before


def _baseline(
    network: PackedTransformer, tokenizer: Tokenizer, modality: Modality, baseline: Baseline
) -> Tensor:
    """(D,)"""
    weight_VD = cast(nn.Embedding, network.embeddings["word_embeddings"]).weight.detach()
    if baseline == "zero" or (baseline == "mask" and network.config.token_dropout):
        return torch.zeros_like(weight_VD[0])
    if baseline == "mask":
        return weight_VD[network.config.mask_token_id]
    letter = _UNKNOWN_LETTER[modality]
    probe = letter + ("A" if modality != "protein" else "M")
    spans_T2 = token_spans(tokenizer, probe, modality)
    first = int(np.flatnonzero((spans_T2 == [0, 1]).all(axis=1))[0])
    return weight_VD[int(tokenizer(probe).token_ids[first])]
