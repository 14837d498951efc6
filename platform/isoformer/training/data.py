"""A dataset pinned in memory: transcripts joined with one embedding dataset a modality, as plain numpy arrays.

`load_dataset` reads shard by shard (the same number is the same genes in every dataset, so the join is local), keeps each
distinct sequence once and gives a `PinnedDataset`. Its arrays travel through Ray's object store without a copy, so that
all trials of a sweep on a node share one. Nothing here needs torch or Ray.

Shapes: N transcripts, K tissues, S distinct sequences of a modality, P positions of all sequences, D width, F features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from numpy.typing import NDArray

from isoformer.baselines import tabular_features
from isoformer.config import FrozenConfig
from isoformer.errors import FingerprintError, InputError
from isoformer.schema import MODALITIES, SPLITS, Modality, digest_column

if TYPE_CHECKING:
    import pyarrow as pa

    from isoformer.embeddings.store import EmbeddingDataset
    from isoformer.storage import Storage


class DatasetSpec(FrozenConfig):
    """Which dataset: a storage root and one encoder key a modality."""

    root: str
    keys: dict[Modality, str]


@dataclass(frozen=True)
class SequenceStates:
    """Embeddings of one modality: sequence s holds positions [offsets[s], offsets[s+1]) of `flat_PD`.

    `sequence_of_N` is the sequence of each transcript, -1 where the transcript lacks the modality.
    """

    flat_PD: NDArray[np.float16]
    offsets: NDArray[np.int64]
    sequence_of_N: NDArray[np.int64]

    @property
    def width(self) -> int:
        return self.flat_PD.shape[1]

    @property
    def lengths_N(self) -> NDArray[np.int64]:
        """Positions of each transcript; 0 where the modality is missing."""
        lengths_S = np.diff(self.offsets)
        if len(lengths_S) == 0:
            return np.zeros(len(self.sequence_of_N), dtype=np.int64)
        return np.where(self.sequence_of_N >= 0, lengths_S[self.sequence_of_N], 0)

    def means_ND(self) -> NDArray[np.float32]:
        """Mean over each transcript's positions; zeros where the modality is missing."""
        means_SD = np.zeros((len(self.offsets) - 1, self.width), dtype=np.float32)
        for s, (start, end) in enumerate(zip(self.offsets[:-1], self.offsets[1:], strict=True)):
            means_SD[s] = self.flat_PD[start:end].mean(axis=0, dtype=np.float32)
        means_ND = np.zeros((len(self.sequence_of_N), self.width), dtype=np.float32)
        has = self.sequence_of_N >= 0
        means_ND[has] = means_SD[self.sequence_of_N[has]]
        return means_ND


@dataclass(frozen=True)
class PinnedDataset:
    """All that training needs. `encoder_trained` says of each modality whether its encoder was trained or random."""

    transcript_ids: NDArray[np.str_]
    gene_ids: NDArray[np.str_]
    split: NDArray[np.str_]
    targets: NDArray[np.float32]
    target_mask: NDArray[np.bool_]
    target_names: tuple[str, ...]
    states: dict[Modality, SequenceStates]
    features: NDArray[np.float32]
    feature_names: tuple[str, ...]
    fingerprint: str
    encoder_keys: dict[Modality, str]
    encoder_names: dict[Modality, str]
    encoder_trained: dict[Modality, str]
    label_provenance: str
    target_unit: str = "log1p_tpm"

    def __len__(self) -> int:
        return len(self.transcript_ids)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return tuple(modality for modality in MODALITIES if modality in self.states)

    @property
    def widths(self) -> dict[Modality, int]:
        """Encoder width a modality."""
        return {modality: self.states[modality].width for modality in self.modalities}

    @property
    def nbytes(self) -> int:
        held = [self.targets, self.target_mask, self.features]
        return sum(a.nbytes for a in held) + sum(s.flat_PD.nbytes for s in self.states.values())

    def rows(self, split: str) -> NDArray[np.int64]:
        """Row numbers of a split. InputError where it is empty, with what the other splits hold."""
        found = np.flatnonzero(self.split == split)
        if len(found) == 0:
            counts = {name: int((self.split == name).sum()) for name in SPLITS}
            raise InputError(
                "the split has no transcripts", field="split", value=split, allowed=f"counts {counts}"
            )
        return found

    def subset(self, modalities: Sequence[Modality]) -> PinnedDataset:
        """The same transcripts with fewer modalities; arrays are shared. InputError where one is not there."""
        missing = [modality for modality in modalities if modality not in self.states]
        if missing:
            raise InputError(
                "no embeddings of this modality", field="modalities", value=missing, allowed=self.modalities
            )
        return replace(self, states={m: self.states[m] for m in MODALITIES if m in modalities})

    def with_split(self, split: NDArray[np.str_]) -> PinnedDataset:
        """The same transcripts under another split."""
        return replace(self, split=np.asarray(split, dtype=np.str_))

    def require_inputs(self, modalities: Sequence[Modality], splits: Sequence[str] = ("train",)) -> int:
        """Transcripts of these splits that have none of the modalities; InputError where that is all of them."""
        rows = np.concatenate([self.rows(split) for split in splits])
        states = self.subset(modalities).states
        has_none = np.all([states[m].sequence_of_N[rows] < 0 for m in modalities], axis=0)
        if has_none.all():
            raise InputError(
                "no transcript has any of the requested modalities", field="modalities", value=list(modalities),
                allowed=f"one that some of the {len(rows)} transcripts of {', '.join(splits)} have",
            )  # fmt: skip
        return int(has_none.sum())


def load_dataset(
    root: str, keys: Mapping[Modality, str], *, memory_limit_bytes: int | None = None
) -> PinnedDataset:
    """Read transcripts and embeddings under `root` into memory.

    `memory_limit_bytes` null: 80% of what this machine has free. Raises InputError where the estimate does not fit,
    where a value is not finite or a sequence is not in its dataset; StorageError or FingerprintError where a dataset is
    absent or was made from other transcripts.
    """
    from isoformer.embeddings.store import EmbeddingDataset
    from isoformer.storage import open_storage
    from isoformer.transcripts import read_manifest, read_shard

    if not keys:
        raise InputError(
            "no encoder key is given", field="keys", allowed=f"one a modality: {', '.join(MODALITIES)}"
        )
    storage = open_storage(root)
    manifest = read_manifest(storage)
    datasets = {m: EmbeddingDataset.open(storage, m, keys[m]) for m in MODALITIES if m in keys}
    for modality, dataset in datasets.items():
        _check_same_transcripts(modality, dataset, manifest.fingerprint)
    check_memory(_stored_bytes(storage, datasets, len(manifest.shards)), memory_limit_bytes)
    joined = {modality: _Joined(modality, keys[modality]) for modality in datasets}
    tables = []
    for index in range(len(manifest.shards)):
        table = read_shard(storage, index)
        for modality, dataset in datasets.items():
            joined[modality].add(table, dataset.read_shard(index), index)
        tables.append(_Columns.of(table))
    specs = {modality: dataset.manifest["spec"] for modality, dataset in datasets.items()}
    columns = _Columns.concatenated(tables)
    return PinnedDataset(
        transcript_ids=columns.transcript_ids,
        gene_ids=columns.gene_ids,
        split=columns.split,
        targets=columns.targets,
        target_mask=columns.target_mask,
        target_names=tuple(manifest.target_names),
        states={modality: parts.states() for modality, parts in joined.items()},
        features=columns.features,
        feature_names=columns.feature_names,
        fingerprint=_fingerprint(manifest.fingerprint, keys),
        encoder_keys=dict(keys),
        encoder_names={m: str(spec["name"]) for m, spec in specs.items()},
        encoder_trained={m: str(spec["trained"]) for m, spec in specs.items()},
        label_provenance=str(manifest.label_provenance),
        target_unit=str(manifest.target_unit),
    )


def check_memory(needed_bytes: int, limit_bytes: int | None = None) -> None:
    """InputError where a dataset of this size does not fit into memory."""
    limit = int(psutil.virtual_memory().available * 0.8) if limit_bytes is None else limit_bytes
    if needed_bytes > limit:
        raise InputError(
            f"the dataset needs about {needed_bytes / 2**20:,.0f} MiB pinned in memory",
            field="memory",
            value=f"{limit / 2**20:,.0f} MiB free for it",
            allowed="fewer modalities, a coarser resolution (bins:N or pooled), or a larger machine",
        )


@dataclass(frozen=True)
class _Columns:
    transcript_ids: NDArray[np.str_]
    gene_ids: NDArray[np.str_]
    split: NDArray[np.str_]
    targets: NDArray[np.float32]
    target_mask: NDArray[np.bool_]
    features: NDArray[np.float32]
    feature_names: tuple[str, ...]

    @classmethod
    def of(cls, table: pa.Table) -> _Columns:
        names, features = tabular_features(table)
        return cls(
            *(
                np.array(table[name].to_pylist(), dtype=np.str_)
                for name in ("transcript_id", "gene_id", "split")
            ),
            _matrix(table["targets"], np.float32),
            _matrix(table["target_mask"], np.bool_),
            features,
            names,
        )

    @classmethod
    def concatenated(cls, parts: Sequence[_Columns]) -> _Columns:
        if sum(len(part.transcript_ids) for part in parts) == 0:
            raise InputError("the transcripts dataset has no rows", file="transcripts/manifest.json")
        arrays = ("transcript_ids", "gene_ids", "split", "targets", "target_mask", "features")
        whole: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays
        }
        if not np.isfinite(whole["targets"]).all():
            row = int(np.flatnonzero(~np.isfinite(whole["targets"]).all(axis=1))[0])
            raise InputError(
                "targets are not finite", record=str(whole["transcript_ids"][row]), field="targets"
            )
        return cls(**whole, feature_names=parts[0].feature_names)


class _Joined:
    """Collects one modality shard by shard; a digest met before keeps its first states."""

    def __init__(self, modality: Modality, key: str) -> None:
        self.modality, self.key = modality, key
        self.sequence_of_digest: dict[str, int] = {}
        self.arrays: list[NDArray[np.float16]] = []
        self.rows: list[int] = []

    def add(self, table: pa.Table, states: Mapping[str, NDArray[Any]], index: int) -> None:
        ids = table["transcript_id"].to_pylist()
        for transcript_id, digest in zip(ids, table[digest_column(self.modality)].to_pylist(), strict=True):
            self.rows.append(-1 if digest is None else self._sequence(digest, states, transcript_id, index))

    def _sequence(
        self, digest: str, states: Mapping[str, NDArray[Any]], transcript_id: str, index: int
    ) -> int:
        if digest in self.sequence_of_digest:
            return self.sequence_of_digest[digest]
        place = f"embeddings/{self.modality}/{self.key}, shard {index}"
        if digest not in states:
            raise InputError("the sequence has no embedding", file=place, record=transcript_id, value=digest)
        array = np.asarray(states[digest], dtype=np.float16)
        if len(array) == 0 or not np.isfinite(array).all():
            problem = (
                "the embedding is empty" if len(array) == 0 else "the embedding has NaN or infinite values"
            )
            raise InputError(problem, file=place, record=transcript_id, value=digest)
        self.arrays.append(array)
        self.sequence_of_digest[digest] = len(self.arrays) - 1
        return self.sequence_of_digest[digest]

    def states(self) -> SequenceStates:
        if not self.arrays:
            raise InputError("no transcript has this modality", file=f"embeddings/{self.modality}/{self.key}")
        offsets = np.concatenate([[0], np.cumsum([len(array) for array in self.arrays])]).astype(np.int64)
        return SequenceStates(np.concatenate(self.arrays), offsets, np.array(self.rows, dtype=np.int64))


def _matrix(column: pa.ChunkedArray, dtype: type) -> NDArray[Any]:
    flat = column.combine_chunks().flatten()
    return flat.to_numpy(zero_copy_only=False).astype(dtype).reshape(len(column), -1)


def _check_same_transcripts(modality: Modality, dataset: EmbeddingDataset, fingerprint: str) -> None:
    theirs = dataset.manifest.get("transcripts_fingerprint", fingerprint)
    if theirs != fingerprint:
        raise FingerprintError(
            f"embeddings/{modality} were made from transcripts {theirs}, here are {fingerprint}"
        )


def _stored_bytes(storage: Storage, datasets: Mapping[Modality, EmbeddingDataset], shards: int) -> int:
    from isoformer.schema import shard_name

    total = 0
    for modality, dataset in datasets.items():
        for index in range(shards):
            with storage.open_input(f"embeddings/{modality}/{dataset.key}/{shard_name(index)}") as file:
                total += int(file.size())
    return 2 * total  # the shards' arrays, and once more while they are laid end to end


def _fingerprint(transcripts: str, keys: Mapping[Modality, str]) -> str:
    text = "|".join([transcripts, *(f"{m}={keys[m]}" for m in MODALITIES if m in keys)])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
