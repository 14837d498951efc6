"""Which part of a transcript's sequence an encoder reads, and where it lies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoformer.embeddings.shard_sequences import encoder_window
from isoformer.encoders.borzoi import BASES_PER_BIN
from isoformer.encoders.spec import EncoderSpec
from isoformer.errors import EncoderError
from isoformer.explain.regions import NO_SPAN, even_spans, reduced_spans, token_spans
from isoformer.schema import Modality
from isoformer.sequence_model import SequenceModel, TranscriptSequences


@dataclass(frozen=True)
class Part:
    """Letters that are read. `start`: of the first one; DNA is counted from the TSS."""

    letters: str
    start: int


def part_read(model: SequenceModel, sequences: TranscriptSequences, modality: Modality) -> Part | None:
    """None where the transcript has no such sequence. EncoderError where its window is too small."""
    letters = sequences.of(modality)
    if not letters:
        return None
    if modality != "dna":
        return Part(letters, 0)
    spec = model.spec_of(modality)
    upstream = spec.window_bases[0] if spec.window_bases else len(letters) // 2
    return Part(encoder_window(letters, spec, sequences.transcript_id), -upstream)


def position_spans(
    model: SequenceModel, sequences: TranscriptSequences, modality: Modality, positions: int
) -> NDArray[np.int64] | None:
    """Letters of each position that the fusion reads (P, 2); DNA from the TSS. None where not known.

    By tokens where they can be placed, and by what Enformer and Borzoi return; else one position is the
    whole.
    """
    part = part_read(model, sequences, modality)
    if part is None:
        return None
    try:
        tokens_T2 = token_spans(model.tokenizer_of(modality), part.letters, modality)
    except EncoderError:
        own_L2 = _network_spans(model.spec_of(modality), len(part.letters))
    else:
        own_L2 = tokens_T2[tokens_T2[:, 0] != NO_SPAN]
    reduced_P2 = reduced_spans(own_L2, _resolution(model, modality))
    return reduced_P2 + part.start if len(reduced_P2) == positions else None


def _network_spans(spec: EncoderSpec, letters: int) -> NDArray[np.int64]:
    """Positions in the middle of the window, as Enformer and Borzoi return them; else the whole."""
    sizes = spec.identity.get("architecture", {})
    if "target_length" in sizes:
        bases, count = 2 ** sizes["num_downsamples"], sizes["target_length"]
    elif sizes.get("return_center_bins_only"):
        bases, count = BASES_PER_BIN, sizes["bins_to_return"]
    else:
        return even_spans(letters, 1)
    return even_spans(bases * count, count) + (letters - bases * count) // 2


def _resolution(model: SequenceModel, modality: Modality) -> str:
    if modality in model.encoders:
        return model.encoders[modality].resolution
    return model.model.config.encoders[modality].resolution
