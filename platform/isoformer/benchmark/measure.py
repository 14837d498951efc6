"""Time one encoder pass by the engine's own path, without Ray, and fit what it costs.

In: a configuration, an encoder pass and tokenised sequences. Out: an `EncoderCost`. Subsets of different
lengths and sizes are encoded, reduced and written as shards of a temporary folder. Called in an actor by
`isoformer benchmark profile`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Final

import numpy as np

from isoformer.embeddings.config import EmbedConfig, EncoderPass
from isoformer.embeddings.encode import Output, encode_sequences
from isoformer.embeddings.profile import EncoderCost, fit, hardware
from isoformer.embeddings.shard_file import ShardHeader
from isoformer.embeddings.shard_sequences import TokenizedShard
from isoformer.embeddings.store import ShardWriter, sequences_digest
from isoformer.embeddings.token_budget import TokenBudget
from isoformer.embeddings.workload import Workload
from isoformer.encoders.registry import load_encoder
from isoformer.encoders.spec import Encoder
from isoformer.errors import EncoderError
from isoformer.storage import Storage, open_storage

SECONDS_EACH: Final = 0.6
_ROUNDS: Final = 3
_SIZES: Final = (1.0, 0.3)
"""Of a subset, in parts of `seconds`: two sizes tell a shard's own cost from its sequences'."""
_MOST_SECONDS: Final = 90.0
"""No pass is measured for longer, apart from the subset that is being timed."""

Timed = Callable[["_Subset"], tuple[Workload, float]]


@dataclass(frozen=True)
class _Subset:
    """Sequences that are timed as one shard, and what is made of them."""

    shard: TokenizedShard
    outputs: tuple[Output, ...]


def measure(
    config: EmbedConfig,
    encoder_pass: EncoderPass,
    sequences: TokenizedShard,
    threads: int,
    *,
    seconds: float = SECONDS_EACH,
) -> EncoderCost:
    """Load the encoder here and time the engine's path over subsets of `sequences`, some seconds in all.

    EncoderError where there are no sequences. Memory that ran out halves the budget, which the cost keeps.
    """
    import torch

    if not sequences.digests:
        raise EncoderError(f"{encoder_pass.spec.name}: there are no sequences to measure it on")
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory(prefix="isoformer-profile-") as folder:
            return _measure(config, encoder_pass, sequences, seconds, open_storage(folder))
    finally:
        torch.set_num_threads(threads_before)


def _measure(
    config: EmbedConfig,
    encoder_pass: EncoderPass,
    sequences: TokenizedShard,
    seconds: float,
    storage: Storage,
) -> EncoderCost:
    started = time.perf_counter()
    encoder, budget = load_encoder(encoder_pass.choice, config.device), config.budget()
    outputs = tuple(Output.of(dataset) for dataset in encoder_pass.datasets)

    def timed(subset: _Subset) -> tuple[Workload, float]:
        stored, taken = _encode_and_write(encoder, subset, config.dtype, budget, storage)
        return Workload.of(subset.shard.lengths(), encoder.spec.max_tokens, stored), taken

    shortest = _Subset(sequences.part([int(sequences.lengths().argmin())]), outputs)
    timed(shortest)
    load_seconds = max(0.0, time.perf_counter() - started - timed(shortest)[1])
    tokens_per_second = _first_speed(timed, sequences, outputs, seconds)
    subsets = list(_subsets(sequences, outputs, tokens_per_second * seconds))
    cost = fit(_in_rounds(timed, subsets), load_seconds=load_seconds, hardware=hardware(config.device))
    return replace(cost, token_budget=budget.tokens) if budget.halvings else cost


def _first_speed(
    timed: Timed,
    sequences: TokenizedShard,
    outputs: tuple[Output, ...],
    seconds: float,
) -> float:
    """The best tokens a second of ever more sequences, up to half a timing's length: a warm-up as well."""
    by_length, count, best = _by_length(sequences), 1, 0.0
    while True:
        work, taken = timed(_Subset(sequences.part(_spread(by_length, count)), outputs))
        best = max(best, work.tokens / taken)
        if taken > seconds / 2 or count >= len(by_length):
            return best
        count *= 4


def _in_rounds(timed: Timed, subsets: Sequence[_Subset]) -> list[tuple[Workload, float]]:
    """(workload, median seconds) of every subset; the rounds are interleaved, as in `rounds`."""
    timings: list[list[tuple[Workload, float]]] = [[] for _ in subsets]
    began = time.perf_counter()
    for _ in range(_ROUNDS):
        for index, subset in enumerate(subsets):
            if timings[0] and time.perf_counter() - began > _MOST_SECONDS:
                break
            timings[index].append(timed(subset))
    return [(of_one[0][0], median(taken for _, taken in of_one)) for of_one in timings if of_one]


def _subsets(sequences: TokenizedShard, outputs: tuple[Output, ...], tokens: float) -> Iterator[_Subset]:
    """Mixed, short, medium and long sequences at two sizes, and some at another resolution.

    The other resolution tells the cost of storing a byte from the cost of a token.
    """
    by_length, lengths = _by_length(sequences), sequences.lengths()
    third = -(-len(by_length) // 3)
    bands = [by_length, *(by_length[start : start + third] for start in range(0, len(by_length), third))]
    seen: set[tuple[int, ...]] = set()
    for size in _SIZES:
        for number, band in enumerate(bands):
            count = max(1, round(size * tokens / float(lengths[band].mean())))
            members = _spread(band, count)
            if tuple(lengths[members]) in seen:  # all of one length: the bands are the same
                continue
            seen.add(tuple(lengths[members]))
            part = sequences.part(members)
            yield _Subset(part, outputs)
            if number == 0:
                yield _Subset(part, _otherwise_reduced(outputs))


def _otherwise_reduced(outputs: tuple[Output, ...]) -> tuple[Output, ...]:
    resolution = "pooled" if any(output.resolution == "tokens" for output in outputs) else "tokens"
    return tuple(replace(output, resolution=resolution) for output in outputs)


def _by_length(sequences: TokenizedShard) -> list[int]:
    return [int(place) for place in np.argsort(sequences.lengths(), kind="stable")]


def _spread(by_length: Sequence[int], count: int) -> list[int]:
    """So many members at equal steps, or all of them."""
    count = min(count, len(by_length))
    return [by_length[int((place + 0.5) * len(by_length) / count)] for place in range(count)]


def _encode_and_write(
    encoder: Encoder, subset: _Subset, dtype: str, budget: TokenBudget, storage: Storage
) -> tuple[int, float]:
    """What an actor does with a shard: the bytes of all rows, and seconds.

    An actor publishes a shard while it encodes the next one, so that the longer of the two counts.
    """
    began = time.perf_counter()
    digest = sequences_digest([f"{time.perf_counter_ns()}"])  # what is there already would not be put again
    writers = {
        output.key: ShardWriter(
            storage,
            ShardHeader(
                key=output.key,
                modality=encoder.spec.modality,
                width=encoder.spec.width,
                dtype=dtype,
                resolution=output.resolution,
                shard=0,
                sequences_digest=digest,
            ),
        )
        for output in subset.outputs
    }
    stored_bytes = 0
    for one in encode_sequences(encoder, subset.shard, subset.outputs, dtype, budget):
        for key, values_LD in one.rows.items():
            writers[key].add(one.digest, values_LD)
            stored_bytes += values_LD.nbytes
    encoded = time.perf_counter()
    for writer in writers.values():
        writer.publish({}, {})
    return stored_bytes, max(encoded - began, time.perf_counter() - encoded)
