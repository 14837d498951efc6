"""Batches from a pinned dataset: which rows, in which order, and their padded tensors.

The order of an epoch is a pure function of (seed, epoch), so a position in the data is just (epoch, step).
Rows are shuffled, then sorted by length within a window of a few batches, so that a batch holds rows of like
length and pads little.

Shapes: N rows, B rows of a batch, L positions, D width, K tissues.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoformer.encoders.spec import Packed
from isoformer.fusion import Tokens
from isoformer.model import ModalityInput, SequenceBatch
from isoformer.schema import MODALITIES, Modality
from isoformer.training.data import PinnedDataset, SequenceStates, SequenceTokens

WINDOW_BATCHES: Final = 8
GATHERED_BYTES_LIMIT: Final = 256 << 20
"""Up to this size all rows are padded once, in float32; a batch is then one index_select."""


@dataclass(frozen=True)
class Batch:
    """Rows of the dataset with their tokens, targets in the dataset's unit and mask."""

    rows: NDArray[np.int64]
    tokens: dict[Modality, ModalityInput]
    targets_BK: Tensor
    target_mask_BK: Tensor


class BatchFeed:
    """Makes padded tensors of chosen rows, of the chosen modalities, on a device."""

    def __init__(self, data: PinnedDataset, modalities: Sequence[Modality], device: torch.device) -> None:
        chosen = data.subset(modalities)
        self.states = {m: s for m, s in chosen.states.items() if isinstance(s, SequenceStates)}
        self.tokens = chosen.tokens
        self.device = device
        self.lengths = {modality: part.lengths for modality, part in chosen.sequences.items()}
        self.total_length_N = sum(self.lengths.values(), start=np.zeros(len(data), np.int64))
        self.targets, self.target_mask = data.targets, data.target_mask
        self.gathered = self._gathered() if self._gathered_bytes() <= GATHERED_BYTES_LIMIT else None

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """The padded batch of these rows."""
        inputs = {m: self._input(m, rows).to(self.device) for m in MODALITIES if m in self.lengths}
        return Batch(
            rows,
            inputs,
            torch.from_numpy(self.targets[rows]).to(self.device),
            torch.from_numpy(self.target_mask[rows]).to(self.device),
        )

    def order(
        self,
        rows: NDArray[np.int64],
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        gene_N: NDArray[np.int64] | None = None,
    ) -> list[NDArray[np.int64]]:
        """The batches of an epoch; with `gene_N` no gene is in two of them."""
        if gene_N is not None:
            return gene_order(rows, self.total_length_N, gene_N, batch_size, seed=seed, epoch=epoch)
        return epoch_order(rows, self.total_length_N, batch_size, seed=seed, epoch=epoch)

    def batches(self, order: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        """The batches in this order; those that must be gathered are made ahead by a thread."""
        made = (self.batch(rows) for rows in order)
        return made if self.gathered is not None else ahead(made)

    def share(
        self, rows: NDArray[np.int64], rank: int, world_size: int, gene_N: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """A worker's rows of a batch."""
        return share_of(rows, rank, world_size, gene_N)

    def scoring_order(self, rows: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
        """Places in `rows`, batch by batch, as they are scored: by length."""
        return in_order(np.argsort(self.total_length_N[rows], kind="stable"), batch_size)

    def _input(self, modality: Modality, rows: NDArray[np.int64]) -> ModalityInput:
        if modality in self.tokens:
            return distinct_sequences(self.tokens[modality], rows)
        if self.gathered is None:
            return padded(self.states[modality], rows)
        longest = max(1, int(self.lengths[modality][rows].max(initial=0)))
        whole, index = self.gathered[modality], torch.from_numpy(rows)
        return Tokens(whole.hidden_BLD[index, :longest], whole.is_token_BL[index, :longest])

    def _gathered(self) -> dict[Modality, Tokens]:
        rows = np.arange(len(self.targets))
        return {modality: padded(states, rows) for modality, states in self.states.items()}

    def _gathered_bytes(self) -> int:
        return sum(
            4 * len(self.targets) * states.width * int(self.lengths[modality].max(initial=0))
            for modality, states in self.states.items()
        )


def distinct_sequences(tokens: SequenceTokens, rows: NDArray[np.int64]) -> SequenceBatch:
    """The sequences of these rows, each once. Where no row has the modality a sequence is read all the same
    and used by none, so that all workers of a step do the same work.
    """
    sequence_B = tokens.sequence_of_N[rows]
    distinct = np.unique(sequence_B[sequence_B >= 0])
    chosen = distinct if len(distinct) else np.zeros(1, dtype=np.int64)
    pieces = [tokens.token_ids_T[tokens.offsets[s] : tokens.offsets[s + 1]] for s in chosen]
    offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int64)
    place_B = np.where(sequence_B >= 0, np.searchsorted(chosen, sequence_B), -1)
    packed = Packed(np.concatenate(pieces).astype(np.int32), offsets)
    return SequenceBatch(packed, torch.from_numpy(place_B))


def padded(states: SequenceStates, rows: NDArray[np.int64]) -> Tokens:
    """Hidden states of these rows, zero-padded to the longest, in float32."""
    sequence_B = states.sequence_of_N[rows]
    lengths_B = (
        states.lengths[rows] if len(rows) == len(states.sequence_of_N) else _lengths(states, sequence_B)
    )
    longest = max(1, int(lengths_B.max(initial=0)))
    hidden_BLD = np.zeros((len(rows), longest, states.width), dtype=np.float32)
    for b, (sequence, length) in enumerate(zip(sequence_B, lengths_B, strict=True)):
        if sequence >= 0:
            start = states.offsets[sequence]
            hidden_BLD[b, :length] = states.flat_PD[start : start + length]
    is_token_BL = np.arange(longest)[None, :] < lengths_B[:, None]
    return Tokens(torch.from_numpy(hidden_BLD), torch.from_numpy(is_token_BL))


def epoch_order(
    rows: NDArray[np.int64], lengths_N: NDArray[np.int64], batch_size: int, *, seed: int, epoch: int
) -> list[NDArray[np.int64]]:
    """The batches of an epoch, as row numbers: a pure function of its arguments."""
    random = np.random.default_rng([seed, epoch])
    shuffled = random.permutation(rows)
    window = WINDOW_BATCHES * batch_size
    windows = [shuffled[start : start + window] for start in range(0, len(shuffled), window)]
    ordered = np.concatenate([part[np.argsort(lengths_N[part], kind="stable")] for part in windows])
    batches = in_order(ordered, batch_size)
    return [batches[i] for i in random.permutation(len(batches))]


def gene_order(
    rows: NDArray[np.int64],
    lengths_N: NDArray[np.int64],
    gene_N: NDArray[np.int64],
    batch_size: int,
    *,
    seed: int,
    epoch: int,
) -> list[NDArray[np.int64]]:
    """As `epoch_order`, a gene's rows together: batches of whole genes, of about `batch_size` rows."""
    random = np.random.default_rng([seed, epoch])
    genes, count = np.unique(gene_N[rows], return_counts=True)
    by_gene = np.split(rows[np.argsort(gene_N[rows], kind="stable")], np.cumsum(count)[:-1])
    longest = np.array([lengths_N[members].max() for members in by_gene])
    shuffled = random.permutation(len(genes))
    window = max(1, round(WINDOW_BATCHES * batch_size * len(genes) / max(1, len(rows))))
    windows = [shuffled[start : start + window] for start in range(0, len(shuffled), window)]
    ordered = np.concatenate([part[np.argsort(longest[part], kind="stable")] for part in windows])
    before = np.cumsum(count[ordered]) - count[ordered]
    batches = [
        np.concatenate([by_gene[gene] for gene in ordered[before // batch_size == number]])
        for number in np.unique(before // batch_size)
    ]
    return [batches[i] for i in random.permutation(len(batches))]


def share_of(
    rows: NDArray[np.int64], rank: int, world_size: int, gene_N: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """A worker's rows of a batch: every so manyth row, or, with `gene_N`, gene."""
    turn = np.arange(len(rows)) if gene_N is None else np.unique(gene_N[rows], return_inverse=True)[1]
    return rows[turn % world_size == rank]


def parts_of(
    rows: NDArray[np.int64], most: int | None, gene_N: NDArray[np.int64] | None = None
) -> list[NDArray[np.int64]]:
    """Rows cut into parts of at most `most`; with `gene_N` a gene stays whole, and may be more alone."""
    if most is None or len(rows) <= most:
        return [rows]
    if gene_N is None:
        return in_order(rows, most)
    parts: list[list[int]] = [[]]
    for _, members in groupby(rows.tolist(), key=lambda row: gene_N[row]):
        gene = list(members)
        if parts[-1] and len(parts[-1]) + len(gene) > most:
            parts.append([])
        parts[-1] += gene
    return [np.array(part, dtype=np.int64) for part in parts]


def in_order(rows: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Rows cut into batches as they stand."""
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def ahead(batches: Iterator[Batch], depth: int = 2) -> Iterator[Batch]:
    """The same batches, made by a thread up to `depth` ahead; an error in the making is raised here."""
    waiting: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=depth)
    stopped = threading.Event()
    thread = threading.Thread(target=_fill, args=(batches, waiting, stopped.is_set), daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join(timeout=5)


def _fill(
    batches: Iterator[Batch],
    waiting: queue.Queue[Batch | BaseException | None],
    is_stopped: Callable[[], bool],
) -> None:
    try:
        for batch in batches:
            if not _put(waiting, batch, is_stopped):
                return
        _put(waiting, None, is_stopped)
    except Exception as error:  # handed to the reader, who raises it
        _put(waiting, error, is_stopped)


def _put(
    waiting: queue.Queue[Batch | BaseException | None],
    item: Batch | BaseException | None,
    is_stopped: Callable[[], bool],
) -> bool:
    while not is_stopped():
        try:
            waiting.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False


def _lengths(states: SequenceStates, sequence_B: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(sequence_B >= 0, np.diff(states.offsets)[sequence_B], 0)
