"""What the transcripts shards hold for an encoder, counted without tokenising: the ground of a plan.

A shard is read once a modality; what is kept of it is a handful of sums, so that a survey of a hundred
million sequences fits into memory as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from isoformer.embeddings.config import EncoderPass
from isoformer.embeddings.shard_sequences import ShardSequences, shard_sequences
from isoformer.embeddings.store import sequences_digest
from isoformer.embeddings.workload import Workload
from isoformer.encoders.resolution import positions_after
from isoformer.encoders.spec import EncoderSpec
from isoformer.storage import Storage

READERS: Final = 16
_PADDED_BATCH: Final = 8


@dataclass(frozen=True)
class ShardSurvey:
    """One shard and one encoder pass.

    `load` is of the sequences to encode, without bytes; `positions` (resolution → sum) of all.
    `padded_tokens`: what batches of eight, padded to their longest and in no order of length, would take.
    """

    sequences_digest: str
    sequences: int
    duplicates: int
    tokens: int
    padded_tokens: int
    load: Workload
    positions: dict[str, int]


def surveys(
    storage: Storage, shards: Sequence[int], passes: Sequence[EncoderPass]
) -> Iterator[list[ShardSurvey]]:
    """For each shard, in order, what it holds for each pass."""
    modalities = dict.fromkeys(encoder_pass.spec.modality for encoder_pass in passes)

    def of_shard(shard: int) -> list[ShardSurvey]:
        held = {modality: shard_sequences(storage, shard, modality) for modality in modalities}
        return [survey(held[encoder_pass.spec.modality], encoder_pass) for encoder_pass in passes]

    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(of_shard, shards)


def survey(
    held: ShardSequences, encoder_pass: EncoderPass, already: Collection[str] = frozenset()
) -> ShardSurvey:
    """What a shard holds for a pass; sequences in `already` need not be encoded again."""
    spec = encoder_pass.spec
    tokens = estimated_tokens(spec, held.letters)
    new = np.array([digest not in already for digest in held.digests], dtype=bool)
    return ShardSurvey(
        sequences_digest=sequences_digest(held.digests),
        sequences=len(held.digests),
        duplicates=held.duplicates,
        tokens=int(tokens.sum()),
        padded_tokens=_padded(tokens),
        load=Workload.of(tokens[new], spec.max_tokens),
        positions={
            dataset.resolution: sum(positions_after(int(count), dataset.resolution) for count in tokens)
            for dataset in encoder_pass.datasets
        },
    )


def estimated_tokens(spec: EncoderSpec, letters: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens of sequences of so many letters, special ones left out."""
    if spec.window_bases is not None:
        letters = np.full_like(letters, sum(spec.window_bases))
    tokens = np.ceil(letters / spec.letters_per_token).astype(np.int64)
    return tokens if spec.reads_windows else np.minimum(tokens, spec.max_tokens)


def _padded(tokens: NDArray[np.int64]) -> int:
    batches = [tokens[start : start + _PADDED_BATCH] for start in range(0, len(tokens), _PADDED_BATCH)]
    return sum(len(batch) * int(batch.max()) for batch in batches)
