"""Join transcripts with their embeddings, shard by shard: the work behind `load_dataset`.

Shapes: N transcripts, K tissues, S distinct sequences of a modality, P positions of all sequences, D width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from isoformer.baselines import tabular_features
from isoformer.embeddings.key import NUMPY_DTYPES
from isoformer.embeddings.store import EmbeddingDataset, read_footer
from isoformer.errors import FingerprintError, InputError
from isoformer.homology import sketch
from isoformer.schema import digest_column, shard_name
from isoformer.training.data import SequenceStates, StreamedStates

TEXT_COLUMNS: Final = {"transcript_id": "transcript_ids", "gene_id": "gene_ids", "split": "split"}


class JoinedColumns:
    """Collects the transcripts' own columns; with `sketches`, a MinHash of each RNA."""

    def __init__(self, *, sketches: bool = False) -> None:
        self.sketches = sketches
        self.parts: list[dict[str, NDArray[Any]]] = []
        self.feature_names: tuple[str, ...] = ()

    def add(self, table: pa.Table) -> None:
        self.feature_names, features = tabular_features(table)
        text = {
            name: np.array(table[column].to_pylist(), dtype=np.str_) for column, name in TEXT_COLUMNS.items()
        }
        targets = _matrix(table["targets"], np.float32)
        target_mask = _matrix(table["target_mask"], np.bool_)
        bad = np.flatnonzero(~np.isfinite(targets).all(axis=1))
        if len(bad):
            raise InputError(
                "targets are not finite", record=str(text["transcript_ids"][bad[0]]), field="targets"
            )
        part = {**text, "targets": targets, "target_mask": target_mask, "features": features}
        if self.sketches:
            part["rna_sketches"] = np.stack([sketch(rna or "", "rna") for rna in table["rna"].to_pylist()])
        self.parts.append(part)

    def whole(self) -> dict[str, Any]:
        """All columns by field name. InputError where there is not one row."""
        if sum(len(part["split"]) for part in self.parts) == 0:
            raise InputError("the transcripts dataset has no rows", file="transcripts/manifest.json")
        arrays = {name: np.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}
        return {**arrays, "feature_names": self.feature_names}


class JoinedStates:
    """Collects one modality's embeddings; a digest met in an earlier shard keeps its first states."""

    def __init__(self, dataset: EmbeddingDataset) -> None:
        self.dataset, self.modality = dataset, dataset.manifest["modality"]
        self.place = f"{dataset.storage.uri}/{dataset.prefix}".rstrip("/")
        self.width = dataset.manifest["width"]
        self.dtype = np.dtype(NUMPY_DTYPES[dataset.manifest["dtype"]])
        self.positions = sum(shard["positions"] for shard in dataset.manifest["shards"])
        self.flat_PD: NDArray[Any] | None = None
        self.offsets: list[int] = [0]
        self.sequence_of_digest: dict[str, int] = {}
        self.rows: list[int] = []
        self._quarantined: Counter[str] = Counter()

    @property
    def bytes_needed(self) -> int:
        """What the pinned array takes; one shard more while it is read."""
        largest = max((shard["positions"] for shard in self.dataset.manifest["shards"]), default=0)
        return (self.positions + largest) * self.width * self.dtype.itemsize

    @property
    def quarantined(self) -> dict[str, int]:
        return dict(self._quarantined)

    def require_same_transcripts(self, fingerprint: str, shards: int) -> None:
        """FingerprintError where these embeddings belong to other transcripts."""
        theirs = self.dataset.manifest["transcripts_fingerprint"]
        if theirs != fingerprint or len(self.dataset) != shards:
            raise FingerprintError(
                f"{self.place}: was made from transcripts {theirs} in {len(self.dataset)} shards; "
                f"the transcripts here are {fingerprint} in {shards} shards: run embed again"
            )

    def add(self, table: pa.Table, index: int) -> None:
        """Join one shard's rows with its embeddings."""
        states = self.dataset.read_shard(index)
        footer = read_footer(self.dataset.storage, self.dataset.shard_path(index))
        ids = table["transcript_id"].to_pylist()
        digests = table[digest_column(self.modality)].to_pylist()
        for transcript_id, digest in zip(ids, digests, strict=True):
            if digest is None:
                self.rows.append(-1)
            elif digest in footer.quarantined:
                self.rows.append(-1)
                self._quarantined[footer.quarantined[digest]] += 1
            else:
                self.rows.append(self._sequence(digest, states, f"{transcript_id} in {shard_name(index)}"))

    def states(self) -> SequenceStates:
        """The modality, pinned. InputError where no transcript has it."""
        if self.flat_PD is None:
            raise InputError(
                "no transcript has this modality", file=self.place, field="modality", value=self.modality
            )
        offsets = np.array(self.offsets, dtype=np.int64)
        return SequenceStates(self.flat_PD[: offsets[-1]], offsets, np.array(self.rows, dtype=np.int64))

    def _sequence(self, digest: str, states: Mapping[str, NDArray[Any]], record: str) -> int:
        if digest in self.sequence_of_digest:
            return self.sequence_of_digest[digest]
        if digest not in states:
            raise InputError("the sequence has no embedding", file=self.place, record=record, value=digest)
        array = states[digest]
        if len(array) == 0 or not np.isfinite(array).all():
            problem = (
                "the embedding is empty" if len(array) == 0 else "the embedding has NaN or infinite values"
            )
            raise InputError(problem, file=self.place, record=record, value=digest)
        if self.flat_PD is None:
            self.flat_PD = np.empty((self.positions, self.width), dtype=self.dtype)
        start, end = self.offsets[-1], self.offsets[-1] + len(array)
        self.flat_PD[start:end] = array
        self.offsets.append(end)
        self.sequence_of_digest[digest] = len(self.offsets) - 2
        return len(self.offsets) - 2


class JoinedPlaces:
    """Collects where one modality's embeddings are; reads no embedding."""

    def __init__(self, dataset: EmbeddingDataset) -> None:
        self.dataset = dataset
        self.parts: list[tuple[list[str], list[int], int]] = []
        self._quarantined: Counter[str] = Counter()

    @property
    def quarantined(self) -> dict[str, int]:
        return dict(self._quarantined)

    def add(self, table: pa.Table, index: int) -> None:
        """Join one shard's rows with the lengths of their sequences."""
        lengths, quarantined = self.dataset.read_lengths(index)
        digests = table[digest_column(self.dataset.manifest["modality"])].to_pylist()
        for transcript_id, digest in zip(table["transcript_id"].to_pylist(), digests, strict=True):
            if digest in quarantined:
                self._quarantined[quarantined[digest]] += 1
            elif digest is not None and not lengths.get(digest):
                record = f"{transcript_id} in {shard_name(index)}"
                place = f"{self.dataset.storage.uri}/{self.dataset.prefix}".rstrip("/")
                raise InputError("the sequence has no embedding", file=place, record=record, value=digest)
        found = [lengths.get(digest, 0) for digest in digests]
        held = [digest if length else "" for digest, length in zip(digests, found, strict=True)]
        self.parts.append((held, found, index))

    def states(self) -> StreamedStates:
        """The modality. InputError where no transcript has it."""
        lengths = np.concatenate([np.array(found, np.int64) for _, found, _ in self.parts])
        if not lengths.any():
            modality = self.dataset.manifest["modality"]
            raise InputError("no transcript has this modality", field="modality", value=modality)
        digests = np.array([digest.encode() for held, _, _ in self.parts for digest in held], dtype=np.bytes_)
        shards = np.concatenate([np.full(len(found), index, np.int64) for _, found, index in self.parts])
        return StreamedStates(self.dataset, digests, lengths, shards)


def _matrix(column: pa.ChunkedArray, dtype: type) -> NDArray[Any]:
    flat = column.combine_chunks().flatten()
    return flat.to_numpy(zero_copy_only=False).astype(dtype).reshape(len(column), -1)
