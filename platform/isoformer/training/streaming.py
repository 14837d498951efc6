"""Embeddings that stay where they are: read shard by shard, a few ahead of the step that needs them.

The transcripts' small columns are in memory, the embeddings of a few shards at a time. An epoch takes the
shards in a random order, some at a time (a group); the rows of a group are shuffled together, bucketed by
length and cut into batches, while a thread reads the next group. So memory holds two groups at most, whatever
the dataset's size, and the order of an epoch is a pure function of (seed, epoch), as in memory.

With several workers each reads its own shards of a group, and its share of a batch are the rows of those.

Shapes: N transcripts, B rows of a batch, L positions, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from isoformer.errors import ConfigError
from isoformer.fusion import Tokens
from isoformer.model import ModalityInput
from isoformer.schema import MODALITIES, Modality
from isoformer.training.batches import (
    Batch,
    BatchFeed,
    ahead,
    distinct_sequences,
    epoch_order,
    gene_order,
    in_order,
    share_of,
)
from isoformer.training.data import PinnedDataset, StreamedStates

Shard = Mapping[str, NDArray[Any]]
"""Digest → hidden states (L, D), as stored."""


class StreamFeed(BatchFeed):
    """Makes the same batches as `BatchFeed` of a dataset whose embeddings are not in memory."""

    def __init__(
        self, data: PinnedDataset, modalities: Sequence[Modality], device: torch.device, group_shards: int
    ) -> None:
        chosen = data.subset(modalities)
        self.places = {m: s for m, s in chosen.states.items() if isinstance(s, StreamedStates)}
        self.group_shards = group_shards
        self.shard_of_N = next(iter(self.places.values())).shard_of_N
        self.turn_of_shard: dict[int, int] = {}
        super().__init__(replace(chosen, states={}), [*chosen.tokens], device)
        self.lengths = {modality: part.lengths for modality, part in chosen.sequences.items()}
        self.total_length_N = np.sum(list(self.lengths.values()), axis=0)

    def order(
        self,
        rows: NDArray[np.int64],
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        gene_N: NDArray[np.int64] | None = None,
    ) -> list[NDArray[np.int64]]:
        """The batches of an epoch, group after group; a batch is of one group."""
        shards = np.random.default_rng([seed, epoch]).permutation(np.unique(self.shard_of_N[rows]))
        groups = [
            shards[start : start + self.group_shards] for start in range(0, len(shards), self.group_shards)
        ]
        self.turn_of_shard = {int(shard): turn for group in groups for turn, shard in enumerate(group)}
        order: list[NDArray[np.int64]] = []
        for number, group in enumerate(groups):
            members = rows[np.isin(self.shard_of_N[rows], group)]
            place = epoch * len(groups) + number
            if gene_N is None:
                order += epoch_order(members, self.total_length_N, batch_size, seed=seed, epoch=place)
            else:
                order += gene_order(members, self.total_length_N, gene_N, batch_size, seed=seed, epoch=place)
        return order

    def share(
        self, rows: NDArray[np.int64], rank: int, world_size: int, gene_N: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """The rows of a worker's own shards."""
        if world_size > self.group_shards:
            raise ConfigError(
                f"train.workers is {world_size}, but train.stream_shards {self.group_shards}: each worker "
                "reads shards of its own, so there must be as many shards at a time as workers"
            )
        if world_size == 1:
            return share_of(rows, rank, world_size, gene_N)
        turn_B = np.array([self.turn_of_shard[int(shard)] for shard in self.shard_of_N[rows]])
        return rows[turn_B % world_size == rank]

    def scoring_order(self, rows: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
        """Places in `rows`, shard after shard, by length within one."""
        order = np.lexsort((self.total_length_N[rows], self.shard_of_N[rows]))
        shard = self.shard_of_N[rows][order]
        parts = np.split(order, np.flatnonzero(np.diff(shard)) + 1)
        return [batch for part in parts if len(part) for batch in in_order(part, batch_size)]

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """These rows, whose shards are read for them alone."""
        return self._batch(rows, self._shards(np.unique(self.shard_of_N[rows]).tolist()))

    def batches(self, order: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        """The batches in this order: one thread reads shards ahead, another makes batches of them."""
        return ahead(self._made(order))

    def _made(self, order: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        runs = _runs(
            [frozenset(np.unique(self.shard_of_N[rows]).tolist()) for rows in order], self.group_shards
        )
        waiting = iter(order)
        with ThreadPoolExecutor(1, "isoformer-read") as reader:
            coming = [reader.submit(self._shards, shards) for shards, _ in runs[:1]]
            for number, (_, count) in enumerate(runs):
                held = coming.pop().result()
                coming = [reader.submit(self._shards, shards) for shards, _ in runs[number + 1 : number + 2]]
                yield from (self._batch(rows, held) for rows in islice(waiting, count))

    def _shards(self, shards: Iterable[int]) -> dict[tuple[Modality, int], Shard]:
        return {
            (modality, shard): states.dataset.read_shard(shard)
            for modality, states in self.places.items()
            for shard in shards
        }

    def _batch(self, rows: NDArray[np.int64], held: Mapping[tuple[Modality, int], Shard]) -> Batch:
        inputs: dict[Modality, ModalityInput] = {}
        for modality in MODALITIES:
            if modality in self.places:
                inputs[modality] = self._padded(modality, rows, held).to(self.device)
            elif modality in self.tokens:
                inputs[modality] = distinct_sequences(self.tokens[modality], rows).to(self.device)
        return Batch(
            rows,
            inputs,
            torch.from_numpy(self.targets[rows]).to(self.device),
            torch.from_numpy(self.target_mask[rows]).to(self.device),
        )

    def _padded(
        self, modality: Modality, rows: NDArray[np.int64], held: Mapping[tuple[Modality, int], Shard]
    ) -> Tokens:
        states = self.places[modality]
        lengths_B = states.lengths[rows]
        hidden_BLD = np.zeros((len(rows), max(1, int(lengths_B.max(initial=0))), states.width), np.float32)
        for b, row in enumerate(rows):
            if lengths_B[b]:
                shard = held[modality, int(states.shard_of_N[row])]
                hidden_BLD[b, : lengths_B[b]] = shard[states.digest_of_N[row].decode()]
        is_token_BL = np.arange(hidden_BLD.shape[1])[None, :] < lengths_B[:, None]
        return Tokens(torch.from_numpy(hidden_BLD), torch.from_numpy(is_token_BL))


def _runs(listed: Iterable[frozenset[int]], most: int) -> list[tuple[frozenset[int], int]]:
    """Neighbouring batches that together need `most` shards, or one that needs more: (shards, batches)."""
    runs: list[tuple[frozenset[int], int]] = []
    for shards in listed:
        if runs and len(runs[-1][0] | shards) <= most:
            runs[-1] = (runs[-1][0] | shards, runs[-1][1] + 1)
        else:
            runs.append((shards, 1))
    return runs


def new_feed(
    data: PinnedDataset, modalities: Sequence[Modality], device: torch.device, group_shards: int = 2
) -> BatchFeed:
    """The feed of a dataset, in memory or not."""
    if data.is_streamed:
        return StreamFeed(data, modalities, device, group_shards)
    return BatchFeed(data, modalities, device)
