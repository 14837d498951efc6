"""The sequences of a batch as tokens, each distinct one once: what `SequenceModel` hands to an encoder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from isoformer.embeddings.shard_sequences import NO_VALID_LETTER, TokenizedShard, encoder_window
from isoformer.encoders.registry import load_tokenizer
from isoformer.encoders.spec import EncoderSpec, Tokenizer
from isoformer.errors import EncoderError
from isoformer.sequences import sequence_digest

if TYPE_CHECKING:
    from isoformer.model_config import EncoderInside

# N transcripts

WINDOW_TOO_SMALL: Final = "window_too_small"
"""The DNA given is shorter than what the encoder reads around the TSS."""


@dataclass(frozen=True)
class TokenisedBatch:
    """The digest of each transcript's sequence, None where it has none; the distinct ones as tokens."""

    digest_N: list[str | None]
    shard: TokenizedShard

    def places(self, digests: Sequence[str]) -> NDArray[np.int64]:
        """Of each transcript, the place of its sequence among `digests`, -1 where it is not there."""
        place = {digest: index for index, digest in enumerate(digests)}
        return np.array([place.get(digest or "none", -1) for digest in self.digest_N], np.int64)


def tokenised_batch(
    sequences: Sequence[str | None], spec: EncoderSpec, tokenizer: Tokenizer
) -> TokenisedBatch:
    """Each distinct sequence once; one that cannot be tokenised is quarantined with its reason."""
    digest_N = [sequence_digest(sequence) if sequence else None for sequence in sequences]
    distinct = {d: s for d, s in zip(digest_N, sequences, strict=True) if d is not None and s}
    pieces: dict[str, NDArray[np.int32]] = {}
    quarantined: dict[str, str] = {}
    for digest, sequence in sorted(distinct.items()):
        try:
            window = encoder_window(sequence, spec, "the transcript") if spec.modality == "dna" else sequence
        except EncoderError:
            quarantined[digest] = WINDOW_TOO_SMALL
            continue
        try:
            pieces[digest] = tokenizer(window).token_ids
        except EncoderError:
            quarantined[digest] = NO_VALID_LETTER
    return TokenisedBatch(digest_N, end_to_end(pieces, quarantined))


def end_to_end(pieces: dict[str, NDArray[np.int32]], quarantined: dict[str, str]) -> TokenizedShard:
    token_ids = np.concatenate([np.empty(0, np.int32), *pieces.values()])
    return TokenizedShard(list(pieces), token_ids, offsets_of(list(pieces.values())), quarantined)


def offsets_of(pieces: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int64)


def inside_tokenizer(settings: EncoderInside, config_json: object) -> Tokenizer:
    """Of an encoder inside the model, whose folder of weights need not be there any more."""
    with tempfile.TemporaryDirectory(prefix="isoformer-config-") as folder:
        if config_json is not None:
            Path(folder, "config.json").write_text(json.dumps(config_json), encoding="utf-8")
        weights = folder if config_json is not None else None
        return load_tokenizer(settings.encoder.edited(random_seed=0, weights=weights))
