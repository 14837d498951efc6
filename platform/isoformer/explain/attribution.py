"""Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365) of one transcript's prediction.

From the token embeddings of DNA, RNA and protein, all at once along the straight line from a baseline,
through the encoders, their reduction, the fusion and the head, to log1p TPM of a tissue or of the mean over
tissues. By captum, with Gauss-Legendre points. Embeddings made before the model are rounded to float16; a
gradient cannot pass that, so the rounding is left out here, and the difference it makes to the prediction is
told.

A modality whose encoder has no gradient (composition, convolutional ones that are only read) keeps its states
and gets no attribution: `not_attributed` says which, and why.

Shapes: S points of the integral, T tokens, D width, W wanted outputs, K tissues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from isoformer.encoders.registry import load_trainable
from isoformer.encoders.resolution import reduce_each
from isoformer.encoders.spec import Encoded, Packed
from isoformer.encoders.trainable import TrainableEncoder
from isoformer.errors import ConfigError, InputError
from isoformer.explain.config import ExplainConfig
from isoformer.explain.predictions import Progress, repeated
from isoformer.explain.reading import Part, part_read
from isoformer.explain.regions import NO_SPAN, RnaRegions, region_names
from isoformer.explain.taps import Tap, tap_of
from isoformer.fusion import Tokens
from isoformer.model import EncoderInput, ModalityInput, SequenceBatch
from isoformer.schema import Modality
from isoformer.sequence_model import SequenceModel, TranscriptSequences

MEAN: Final = "mean"
SMALL: Final = 0.01


@dataclass(frozen=True, eq=False)
class Attribution:
    """`table`: a row a token. `outputs`: of each wanted output, what it sums to and what it should.

    `rounding`: the largest change of the prediction, over tissues, that the rounding left out would make.
    """

    table: pl.DataFrame
    outputs: dict[str, Completeness]
    not_attributed: dict[Modality, str]
    rounding: float


@dataclass(frozen=True)
class Completeness:
    """Attributions sum to `prediction - baseline`, up to `delta`, which shrinks with more steps."""

    prediction: float
    baseline: float
    attributed: float

    @property
    def delta(self) -> float:
        return self.attributed - (self.prediction - self.baseline)

    @property
    def is_complete(self) -> bool:
        """Whether `delta` is small: 0.01 of log1p TPM, or a hundredth of the difference."""
        return abs(self.delta) <= max(SMALL, SMALL * abs(self.prediction - self.baseline))


def attribute(
    model: SequenceModel,
    sequences: TranscriptSequences,
    regions: RnaRegions | None,
    options: ExplainConfig,
    *,
    tissues: Sequence[str] = (),
    progress: Progress | None = None,
) -> Attribution:
    """Attribution of the mean over tissues, and of each of `tissues`.

    Columns: modality, token, start, end (letters, 0-based, half-open; DNA from the TSS), region, letters,
    then `mean` and one a tissue, in log1p TPM. InputError for an unknown tissue or where nothing can be
    attributed; EncoderError for a sequence read in several windows.
    """
    outputs = _outputs(model, tissues)
    tapped, why_not = _taps(model, sequences, options)
    taps = [one.tap for one in tapped]
    if not taps:
        raise InputError("no modality can be attributed", record=sequences.transcript_id, value=why_not)
    read = model.read([sequences])
    predict = partial(_predict, model, taps, read.inputs, outputs)
    real = tuple(tap.real[None] for tap in taps)
    baselines = tuple(tap.baseline[None] for tap in taps)
    with torch.no_grad():
        at_real_W, at_baseline_W = predict(*real)[0], predict(*baselines)[0]
        rounded_K = model.model.predict(read.inputs)[0]
        exact_K = _predict(model, taps, read.inputs, _all_outputs(model), *real)[0]
    columns: dict[str, list[Tensor]] = {}
    for place, name in enumerate(outputs):
        columns[name] = _integrated(predict, real, baselines, place, options)
        if progress is not None:
            progress(place + 1, len(outputs))
    completeness = {
        name: Completeness(
            float(at_real_W[place]),
            float(at_baseline_W[place]),
            float(sum(part_T.sum() for part_T in columns[name])),
        )
        for place, name in enumerate(outputs)
    }
    table = pl.concat([_rows(one, i, columns, regions) for i, one in enumerate(tapped)])
    return Attribution(table, completeness, why_not, float((rounded_K - exact_K).abs().max()))


@dataclass(frozen=True, eq=False)
class Tapped:
    tap: Tap
    part: Part


Outputs = Mapping[str, Callable[[Tensor], Tensor]]


def _outputs(model: SequenceModel, tissues: Sequence[str]) -> Outputs:
    """Of predictions (S, K), each wanted output (S,)."""
    unknown = [tissue for tissue in tissues if tissue not in model.target_names]
    if unknown:
        raise InputError("unknown tissue", field="tissue", value=unknown[0], allowed=model.target_names)
    return {MEAN: partial(torch.mean, dim=1), **{t: _column(model, t) for t in tissues}}


def _all_outputs(model: SequenceModel) -> Outputs:
    return {tissue: _column(model, tissue) for tissue in model.target_names}


def _column(model: SequenceModel, tissue: str) -> Callable[[Tensor], Tensor]:
    place = model.target_names.index(tissue)
    return lambda predicted_SK: predicted_SK[:, place]


def _taps(
    model: SequenceModel, sequences: TranscriptSequences, options: ExplainConfig
) -> tuple[list[Tapped], dict[Modality, str]]:
    tapped: list[Tapped] = []
    why_not: dict[Modality, str] = {}
    for modality in model.modalities:
        part = part_read(model, sequences, modality)
        if part is None:
            why_not[modality] = "the transcript has none"
            continue
        try:
            encoder = _trainable(model, modality, options.device)
        except ConfigError as error:
            why_not[modality] = str(error)
            continue
        tap = tap_of(encoder, model.tokenizer_of(modality), part.letters, modality, options.baseline)
        tapped.append(Tapped(tap, part))
    return tapped, why_not


def _trainable(model: SequenceModel, modality: Modality, device: str) -> TrainableEncoder:
    if modality in model.model.config.encoders:
        return model.model.encoder_inside(modality).eval()
    choice = model.encoders[modality].choice.edited(precision="f32")
    encoder = load_trainable(choice, device).eval()
    encoder.requires_grad_(False)
    return encoder


def _predict(
    model: SequenceModel,
    taps: Sequence[Tap],
    read: Mapping[Modality, ModalityInput],
    outputs: Outputs,
    *given: Tensor,
) -> Tensor:
    """(S, W) from the tapped states of S copies of the transcript."""
    copies = len(given[0])
    inputs = {modality: repeated(one, copies) for modality, one in read.items()}
    with ExitStack() as stack:
        for tap, given_STD in zip(taps, given, strict=True):
            encoded = tap.encode(given_STD)
            if tap.modality in model.encoders:
                inputs[tap.modality] = _tokens(encoded, model.encoders[tap.modality].resolution)
            else:
                inputs[tap.modality] = stack.enter_context(_instead(model, tap.modality, encoded))
        predicted_SK = model.model.predict(inputs)
    return torch.stack([output(predicted_SK) for output in outputs.values()], dim=1)


def _tokens(encoded: Encoded, resolution: str) -> Tokens:
    """As the cached embeddings hold them, without rounding; copies have the same length."""
    hidden_SLD = pad_sequence(reduce_each(encoded, resolution), batch_first=True)
    is_token_SL = torch.ones(hidden_SLD.shape[:2], dtype=torch.bool, device=hidden_SLD.device)
    return Tokens(hidden_SLD, is_token_SL)


class _Encoded(nn.Module):
    """In the place of an encoder inside the model: states that are there already."""

    def __init__(self, encoded: Encoded) -> None:
        super().__init__()
        self.encoded = encoded

    def forward(self, packed: Packed) -> Encoded:
        return self.encoded


@contextmanager
def _instead(model: SequenceModel, modality: Modality, encoded: Encoded) -> Iterator[SequenceBatch]:
    """The input of a modality whose encoder, for the length of a block, gives these states."""
    module = model.model.inputs[modality]
    assert isinstance(module, EncoderInput)
    before = module.encoder
    module.encoder = _Encoded(encoded)  # type: ignore[assignment]
    copies = len(encoded.offsets) - 1
    try:
        packed = Packed(np.zeros(copies, np.int32), np.arange(copies + 1, dtype=np.int64))
        yield SequenceBatch(packed, torch.arange(copies, device=encoded.hidden_PD.device))
    finally:
        module.encoder = before


def _integrated(
    predict: Callable[..., Tensor],
    real: tuple[Tensor, ...],
    baselines: tuple[Tensor, ...],
    output: int,
    options: ExplainConfig,
) -> list[Tensor]:
    """Of each tap, a value a token (T,)."""
    from captum.attr import IntegratedGradients

    attributed = IntegratedGradients(predict).attribute(
        real,
        baselines,
        target=output,
        n_steps=options.steps,
        method="gausslegendre",
        internal_batch_size=options.step_batch,
    )
    return [part_1TD[0].sum(dim=-1).detach().cpu() for part_1TD in attributed]


def _rows(
    tapped: Tapped, index: int, columns: Mapping[str, Sequence[Tensor]], regions: RnaRegions | None
) -> pl.DataFrame:
    """Without special tokens, which are the same in the baseline: their attribution is 0."""
    tap, part = tapped.tap, tapped.part
    own_T = np.flatnonzero(tap.spans[:, 0] != NO_SPAN)
    spans_T2 = tap.spans[own_T]
    told = {
        "modality": [tap.modality] * len(own_T),
        "token": own_T,
        "start": spans_T2[:, 0] + part.start,
        "end": spans_T2[:, 1] + part.start,
        "region": region_names(spans_T2, regions) if tap.modality == "rna" else [None] * len(own_T),
        "letters": [part.letters[start:end] for start, end in spans_T2],
    }
    values = {name: parts[index].numpy()[own_T] for name, parts in columns.items()}
    return pl.DataFrame({**told, **values}, schema_overrides={"region": pl.String})
