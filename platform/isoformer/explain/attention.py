"""Where an RNA encoder's heads look, and how that moved with tuning (the paper's appendix C.1).

For each layer and head, over RNAs: ρ = mean of Σ f · 1[α_ij > μ] / Σ 1[α_ij > μ], the sums over all pairs of
an RNA's tokens, special tokens included. α_ij is the attention that token i (the query) pays to token j (the
key); each row i sums to 1. f marks the tokens of one region. Which token of the pair it marks is an option:

    attended     f(j): the share of attention that goes to the region (the default; so Vig et al., 2021)
    attending    f(i): the share that comes from the region, as the paper's formula is written

Special tokens belong to no region. An RNA in which a head has no α over μ is left out of that head's mean.

Probabilities are computed from the encoder's own projections, rotary positions included, one sequence and
one head at a time: memory is that of one L × L map.

Shapes: T tokens of all sequences, L of one, H heads, E width of a head, Y layers, R regions, N RNAs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoformer.encoders.packed_encoder import PackedEncoder
from isoformer.encoders.packed_transformer import PackedTransformer
from isoformer.encoders.spec import Packed, Tokenizer
from isoformer.encoders.trainable import TrainableEncoder
from isoformer.errors import EncoderError, InputError
from isoformer.explain.config import Marks
from isoformer.explain.predictions import Progress
from isoformer.explain.regions import NO_REGION, REGIONS, RnaRegions, span_regions, token_spans
from isoformer.explain.statistics import compare, mean_of
from isoformer.sequences import sequence_digest

Observe = Callable[[int, int, int, Tensor], None]
"""Told layer, sequence, head and that head's probabilities (L, L), rows being queries."""
TOO_LONG: Final = "longer_than_the_encoder_reads_at_once"
NO_REGIONS: Final = "no_regions"
NO_RNA: Final = "no_rna"
SAME_RNA: Final = "same_rna_as_another"
NO_VALID_LETTER: Final = "no_valid_letter"


class Recorder:
    """Attention that also shows its probabilities: in the place of `PackedTransformer.attend`.

    `layer` counts the calls from 0: one recorder serves one forward pass.
    """

    def __init__(self, observe: Observe) -> None:
        self.observe, self.layer = observe, 0

    def __call__(self, query_THE: Tensor, key_THE: Tensor, value_THE: Tensor, offsets: list[int]) -> Tensor:
        mixed_THE = torch.empty_like(value_THE)
        for sequence, (start, end) in enumerate(pairwise(offsets)):
            for head in range(query_THE.shape[1]):
                scores_LL = query_THE[start:end, head].float() @ key_THE[start:end, head].float().T
                probabilities_LL = torch.softmax(scores_LL * query_THE.shape[-1] ** -0.5, dim=-1)
                self.observe(self.layer, sequence, head, probabilities_LL)
                mixed_THE[start:end, head] = probabilities_LL.to(value_THE) @ value_THE[start:end, head]
        self.layer += 1
        return mixed_THE.flatten(1)


@contextmanager
def recorded(model: PackedTransformer, observe: Observe) -> Iterator[None]:
    """For the length of a block, one forward pass of the model shows its attention."""
    before = model.attend
    model.attend = Recorder(observe)
    try:
        yield
    finally:
        model.attend = before


@dataclass(frozen=True, eq=False)
class RnaEncoder:
    """An RNA encoder whose attention is looked at, and what it goes by."""

    name: str
    encoder: TrainableEncoder
    tokenizer: Tokenizer

    @property
    def network(self) -> PackedTransformer:
        """EncoderError where the encoder has no attention of this kind."""
        network = self.encoder.network
        if not isinstance(self.encoder.encoder, PackedEncoder) or not isinstance(network, PackedTransformer):
            raise EncoderError(
                f"{self.encoder.spec.name}: its attention cannot be read; "
                "allowed: Nucleotide Transformer, RNA-FM"
            )
        return network

    @property
    def layers(self) -> int:
        """Those that are run for the hidden states that the model reads."""
        return max(self.encoder.spec.hidden_states)

    @property
    def heads(self) -> int:
        return self.network.config.num_attention_heads


@dataclass(frozen=True)
class MarkedRna:
    """One distinct RNA and its regions."""

    transcript_id: str
    rna: str
    regions: RnaRegions


@dataclass(frozen=True)
class Chosen:
    """The RNAs to be read, and why other transcripts are not."""

    rnas: list[MarkedRna]
    skipped: dict[str, int]


def choose_rnas(
    rows: Iterable[tuple[str, str | None, RnaRegions | None]], encoders: Sequence[RnaEncoder], *, most: int
) -> Chosen:
    """The first `most` distinct RNAs with regions that every encoder reads in one piece."""
    chosen: dict[str, MarkedRna] = {}
    skipped: Counter[str] = Counter()
    for transcript_id, rna, regions in rows:
        reason = _why_not(rna, regions, encoders)
        if reason is None and rna is not None and regions is not None:
            digest = sequence_digest(rna)
            if digest in chosen:
                reason = SAME_RNA
            elif len(chosen) >= most:
                reason = "over_explain.transcripts"
            else:
                chosen[digest] = MarkedRna(transcript_id, rna, regions)
        if reason is not None:
            skipped[reason] += 1
    return Chosen(list(chosen.values()), dict(skipped))


def region_shares(
    encoder: RnaEncoder,
    rnas: Sequence[MarkedRna],
    *,
    mu: float,
    marks: Marks,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """Each RNA's share of attention over `mu` a layer, head and region (N, Y, H, R); NaN: it has none."""
    shares = np.full((len(rnas), encoder.layers, encoder.heads, len(REGIONS)), np.nan)
    for index, rna in enumerate(rnas):
        shares[index] = _shares(encoder, rna, mu, marks)
        if progress is not None:
            progress(index + 1, len(rnas))
    return shares


def attention_table(
    shares_A: NDArray[np.float64], shares_B: NDArray[np.float64] | None, significance: float
) -> pl.DataFrame:
    """layer and head (from 1), region, rho_A, and, with B, rho_B, delta, p, n pairs.

    InputError where A and B differ in layers or heads.
    """
    if shares_B is None:
        n = np.isfinite(shares_A).sum(axis=0)
        return _table(shares_A.shape[1:], {"rho_A": mean_of(shares_A), "n": n})
    if shares_A.shape != shares_B.shape:
        raise InputError(
            "encoders of other sizes cannot be compared",
            field="layers, heads",
            value=shares_A.shape[1:3],
            allowed=str(shares_B.shape[1:3]),
        )
    found = compare(shares_A, shares_B, significance)
    columns = {"rho_A": found.rho_A, "rho_B": found.rho_B, "delta": found.delta, "p": found.p, "n": found.n}
    return _table(shares_A.shape[1:], columns)


def _why_not(rna: str | None, regions: RnaRegions | None, encoders: Sequence[RnaEncoder]) -> str | None:
    if not rna:
        return NO_RNA
    if regions is None:
        return NO_REGIONS
    for encoder in encoders:
        try:
            tokens = len(encoder.tokenizer(rna))
        except EncoderError:
            return NO_VALID_LETTER
        if tokens > encoder.encoder.spec.max_tokens:
            return TOO_LONG
    return None


def _shares(encoder: RnaEncoder, rna: MarkedRna, mu: float, marks: Marks) -> NDArray[np.float64]:
    """(Y, H, R)"""
    token_ids = encoder.tokenizer(rna.rna).token_ids
    region_L = span_regions(token_spans(encoder.tokenizer, rna.rna, "rna"), rna.regions.of_letters())
    device = next(encoder.network.parameters()).device
    marks_LR = torch.from_numpy(region_L[:, None] == np.arange(len(REGIONS))).to(device, torch.float32)
    assert NO_REGION not in range(len(REGIONS))
    shares = np.full((encoder.layers, encoder.heads, len(REGIONS)), np.nan)
    summed_over = 0 if marks == "attended" else 1

    def observe(layer: int, _sequence: int, head: int, probabilities_LL: Tensor) -> None:
        over_L = (probabilities_LL > mu).sum(dim=summed_over).to(torch.float32)
        total = float(over_L.sum())
        if total:
            shares[layer, head] = (over_L @ marks_LR).cpu().numpy() / total

    with torch.no_grad(), recorded(encoder.network, observe):
        packed = Packed(token_ids, np.array([0, len(token_ids)]))
        ids_T = torch.from_numpy(packed.token_ids.astype(np.int64)).to(device)
        encoder.network(ids_T, packed.offsets.tolist(), (encoder.layers,))
    return shares


def _table(shape: tuple[int, ...], columns: Mapping[str, NDArray[Any]]) -> pl.DataFrame:
    layer, head, region = (index.ravel() for index in np.indices(shape))
    told = {"layer": layer + 1, "head": head + 1, "region": [REGIONS[index] for index in region]}
    values = {name: pl.Series(values.ravel()) for name, values in columns.items()}
    return pl.DataFrame({**told, **values}).with_columns(pl.selectors.float().fill_nan(None))
