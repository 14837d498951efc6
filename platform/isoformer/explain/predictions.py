"""A model's answer to changed sequences, beside its answer to the unchanged ones.

Shapes: N alternatives, K tissues; predictions are natural log(1 + TPM).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from isoformer.errors import BudgetError, InputError
from isoformer.fusion import Tokens
from isoformer.model import ModalityInput
from isoformer.schema import Modality
from isoformer.sequence_model import ReadBatch, SequenceModel, TranscriptSequences

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Reference:
    """One transcript as it is, against which alternatives are set.

    A modality that no alternative of a batch changes is encoded once, for the reference.
    """

    model: SequenceModel
    sequences: TranscriptSequences

    @cached_property
    def _read(self) -> ReadBatch:
        return self.model.read([self.sequences])

    @cached_property
    def prediction(self) -> NDArray[np.float32]:
        """Of the reference (K,). InputError where the model can read none of the transcript's sequences."""
        if not self._read.read[0]:
            raise InputError(
                "the model can read none of its sequences",
                record=self.sequences.transcript_id,
                value=self._read.unusable[0],
            )
        return self._predicted(self._read.inputs)[0]

    def deltas(
        self,
        alternatives: Sequence[TranscriptSequences],
        *,
        batch_size: int,
        progress: Progress | None = None,
    ) -> NDArray[np.float32]:
        """Alternative minus reference (N, K); NaN where none of an alternative's sequences can be read."""
        rows = [np.empty((0, len(self.model.target_names)), np.float32)]
        for start in range(0, len(alternatives), batch_size):
            rows.append(self._batch(alternatives[start : start + batch_size]) - self.prediction)
            if progress is not None:
                progress(min(start + batch_size, len(alternatives)), len(alternatives))
        return np.concatenate(rows)

    def _batch(self, alternatives: Sequence[TranscriptSequences]) -> NDArray[np.float32]:
        shared = [m for m in self._read.read[0] if all(a.of(m) == self.sequences.of(m) for a in alternatives)]
        read = self.model.read([_without(a, shared) for a in alternatives])
        inputs = {m: repeated(self._read.inputs[m], len(alternatives)) for m in shared}
        predicted = self._predicted({**read.inputs, **inputs})
        if not shared:
            predicted[[not modalities for modalities in read.read]] = np.nan
        return predicted

    def _predicted(self, inputs: dict[Modality, ModalityInput]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return self.model.model.predict(inputs).float().cpu().numpy().copy()


def _without(sequences: TranscriptSequences, modalities: Sequence[Modality]) -> TranscriptSequences:
    missing: dict[str, Any] = dict.fromkeys(modalities)
    return replace(sequences, **missing)


def repeated(one: ModalityInput, count: int) -> ModalityInput:
    """The input of one transcript as that of `count` of them."""
    if isinstance(one, Tokens):
        return Tokens(one.hidden_BLD.expand(count, -1, -1), one.is_token_BL.expand(count, -1))
    return replace(one, sequence_B=one.sequence_B.expand(count))


def require_within(
    model: SequenceModel, sequences: TranscriptSequences, count: int, changed: Sequence[Modality], most: int
) -> None:
    """BudgetError where `count` alternatives are more than `most`: it says what they would cost."""
    if count > most:
        raise BudgetError(
            f"{sequences.transcript_id}: {count:,} predictions asked for, of about "
            f"{flops(model, sequences, changed):.2g} floating-point operations each "
            f"({count * flops(model, sequences, changed):.2g} in all), more than explain.max_predictions "
            f"{most:,}; narrow it with --modality, --region, --positions or --stride, or raise that limit"
        )


def flops(model: SequenceModel, sequences: TranscriptSequences, modalities: Sequence[Modality]) -> float:
    """To encode these modalities of a transcript once."""
    total = 0.0
    for modality in modalities:
        spec = model.spec_of(modality)
        tokens = min(spec.max_tokens, int(len(sequences.of(modality) or "") / spec.letters_per_token) + 1)
        total += spec.flops(tokens, tokens * tokens)
    return total
