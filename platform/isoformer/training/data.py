"""A dataset pinned in memory: transcripts joined with one embedding dataset a modality, as plain numpy
arrays.

`load_dataset` reads shard by shard (the same number is the same genes in every dataset, so the join is
local), keeps each distinct sequence once and gives a `PinnedDataset`. Its arrays travel through Ray's object
store without a copy, so that all trials of a sweep on a node share one. Nothing here needs torch or Ray.

Shapes: N transcripts, K tissues, S distinct sequences of a modality, P positions of all sequences, D width, F
features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import psutil
from numpy.typing import NDArray

from isoformer.errors import InputError
from isoformer.model_config import EncoderInside
from isoformer.schema import MODALITIES, SPLITS, Modality

if TYPE_CHECKING:
    from isoformer.embeddings.store import EmbeddingDataset


@dataclass(frozen=True)
class SequenceStates:
    """Embeddings of one modality: sequence s holds positions [offsets[s], offsets[s+1]) of `flat_PD`
    (float16, as stored).

    `sequence_of_N` is the sequence of each transcript, -1 where the transcript lacks the modality.
    """

    flat_PD: NDArray[Any]
    offsets: NDArray[np.int64]
    sequence_of_N: NDArray[np.int64]

    @property
    def width(self) -> int:
        return self.flat_PD.shape[1]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Positions of each transcript; 0 where the modality is missing."""
        lengths_S = np.diff(self.offsets)
        if len(lengths_S) == 0:
            return np.zeros(len(self.sequence_of_N), dtype=np.int64)
        return np.where(self.sequence_of_N >= 0, lengths_S[self.sequence_of_N], 0)

    @property
    def nbytes(self) -> int:
        return self.flat_PD.nbytes

    def distinct(self, rows: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
        """The states (L, D) of each distinct sequence that these rows have."""
        sequences = np.unique(self.sequence_of_N[rows])
        for s in sequences[sequences >= 0]:
            yield self.flat_PD[self.offsets[s] : self.offsets[s + 1]]

    def means(self) -> NDArray[np.float32]:
        """Mean over each transcript's positions; zeros where the modality is missing."""
        means_SD = np.zeros((len(self.offsets) - 1, self.width), dtype=np.float32)
        for s, (start, end) in enumerate(zip(self.offsets[:-1], self.offsets[1:], strict=True)):
            means_SD[s] = self.flat_PD[start:end].mean(axis=0, dtype=np.float32)
        means_ND = np.zeros((len(self.sequence_of_N), self.width), dtype=np.float32)
        has = self.sequence_of_N >= 0
        means_ND[has] = means_SD[self.sequence_of_N[has]]
        return means_ND


@dataclass(frozen=True)
class StreamedStates:
    """Embeddings of one modality that stay in the store: which sequence each transcript has, how long it is
    and in which shard. `digest_of_N` is empty, `lengths` 0, where the transcript lacks the modality.
    """

    dataset: EmbeddingDataset
    digest_of_N: NDArray[np.bytes_]
    lengths: NDArray[np.int64]
    shard_of_N: NDArray[np.int64]

    @property
    def width(self) -> int:
        return self.dataset.manifest["width"]

    @property
    def sequence_of_N(self) -> NDArray[np.int64]:  # noqa: N802
        """A number of each distinct sequence, -1 where the transcript lacks the modality."""
        return np.where(self.lengths > 0, np.unique(self.digest_of_N, return_inverse=True)[1], -1)

    @property
    def nbytes(self) -> int:
        return self.digest_of_N.nbytes + self.lengths.nbytes + self.shard_of_N.nbytes

    def distinct(self, rows: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
        """The states (L, D) of each distinct sequence that these rows have, a shard in memory at a time."""
        seen: set[bytes] = {b""}
        for shard in np.unique(self.shard_of_N[rows]):
            digests = set(self.digest_of_N[rows[self.shard_of_N[rows] == shard]].tolist()) - seen
            seen |= digests
            states = self.dataset.read_shard(int(shard)) if digests else {}
            yield from (states[digest.decode()] for digest in sorted(digests))

    def means(self) -> NDArray[np.float32]:
        """Mean over each transcript's positions; zeros where the modality is missing."""
        means_ND = np.zeros((len(self.lengths), self.width), dtype=np.float32)
        for shard in np.unique(self.shard_of_N):
            states = self.dataset.read_shard(int(shard))
            for row in np.flatnonzero((self.shard_of_N == shard) & (self.lengths > 0)):
                means_ND[row] = states[self.digest_of_N[row].decode()].mean(axis=0, dtype=np.float32)
        return means_ND


States = SequenceStates | StreamedStates


@dataclass(frozen=True)
class SequenceTokens:
    """Tokens of one modality for an encoder inside the model: sequence s holds [offsets[s], offsets[s+1]) of
    `token_ids_T`. `counts`: letters cropped or masked, by reason.
    """

    token_ids_T: NDArray[Any]
    offsets: NDArray[np.int64]
    sequence_of_N: NDArray[np.int64]
    width: int
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each transcript; 0 where the modality is missing."""
        lengths_S = np.diff(self.offsets)
        return np.where(self.sequence_of_N >= 0, lengths_S[self.sequence_of_N], 0)

    @property
    def nbytes(self) -> int:
        return self.token_ids_T.nbytes


@dataclass(frozen=True)
class PinnedDataset:
    """All that training needs. `encoder_trained` says of each modality whether its encoder was trained or
    random.
    """

    transcript_ids: NDArray[np.str_]
    gene_ids: NDArray[np.str_]
    split: NDArray[np.str_]
    targets: NDArray[np.float32]
    target_mask: NDArray[np.bool_]
    target_names: tuple[str, ...]
    states: dict[Modality, States]
    features: NDArray[np.float32]
    feature_names: tuple[str, ...]
    transcripts_fingerprint: str
    encoder_keys: dict[Modality, str]
    encoder_names: dict[Modality, str]
    encoder_trained: dict[Modality, str]
    label_provenance: str
    target_unit: str = "log1p_tpm"
    quarantined: dict[Modality, dict[str, int]] = field(default_factory=dict)
    tokens: dict[Modality, SequenceTokens] = field(default_factory=dict)
    rna_sketches: NDArray[np.uint32] | None = None
    """(N, S) MinHash of each transcript's RNA, as `homology.sketch` makes it; null where nobody made them."""

    def __len__(self) -> int:
        return len(self.transcript_ids)

    @property
    def fingerprint(self) -> str:
        """Of the transcripts and the embeddings in use: a subset of modalities has its own."""
        text = "|".join(
            [self.transcripts_fingerprint, *(f"{m}={self.encoder_keys[m]}" for m in self.modalities)]
        )
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return tuple(modality for modality in MODALITIES if modality in self.sequences)

    @property
    def is_streamed(self) -> bool:
        """Whether the embeddings stay in the store."""
        return any(isinstance(states, StreamedStates) for states in self.states.values())

    @property
    def sequences(self) -> dict[Modality, States | SequenceTokens]:
        """What each modality is read from: embeddings, or tokens for an encoder inside the model."""
        return {**self.states, **self.tokens}

    @property
    def widths(self) -> dict[Modality, int]:
        """Encoder width a modality."""
        sequences = self.sequences
        return {modality: sequences[modality].width for modality in self.modalities}

    @property
    def nbytes(self) -> int:
        held = [self.targets, self.target_mask, self.features]
        return sum(a.nbytes for a in held) + sum(s.nbytes for s in self.states.values())

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
        """The same transcripts with fewer modalities; arrays are shared. InputError where one is not
        there.
        """
        missing = [modality for modality in modalities if modality not in self.sequences]
        if missing:
            raise InputError(
                "no embeddings of this modality", field="modalities", value=missing, allowed=self.modalities
            )
        kept = [modality for modality in MODALITIES if modality in modalities]
        return replace(
            self,
            states={m: self.states[m] for m in kept if m in self.states},
            tokens={m: self.tokens[m] for m in kept if m in self.tokens},
        )

    def with_split(self, split: NDArray[np.str_]) -> PinnedDataset:
        """The same transcripts under another split."""
        return replace(self, split=np.asarray(split, dtype=np.str_))

    def require_inputs(self, modalities: Sequence[Modality], splits: Sequence[str] = ("train",)) -> int:
        """Transcripts of these splits that have none of the modalities; InputError where that is all of
        them.
        """
        rows = np.concatenate([self.rows(split) for split in splits])
        sequences = self.subset(modalities).sequences
        has_none = np.all([sequences[m].sequence_of_N[rows] < 0 for m in modalities], axis=0)
        if has_none.all():
            raise InputError(
                "no transcript has any of the requested modalities",
                field="modalities",
                value=list(modalities),
                allowed=f"one that some of the {len(rows)} transcripts of {', '.join(splits)} have",
            )
        return int(has_none.sum())


def load_dataset(
    root: str,
    keys: Mapping[Modality, str],
    *,
    encoders: Mapping[Modality, EncoderInside] | None = None,
    mode: Literal["auto", "pinned", "streamed"] = "auto",
    memory_limit_bytes: int | None = None,
    sketches: bool = False,
) -> PinnedDataset:
    """Read transcripts and embeddings under `root` into memory, and tokenise for `encoders` inside the model.
    `sketches` adds those of the RNAs, which the nearest-gene baseline needs.

    `streamed` leaves the embeddings in the store; `auto` does where they do not fit.
    `memory_limit_bytes` null: 80% of what this machine has free. Raises InputError where the estimate does
    not fit, where a value is not finite or a sequence is not in its dataset; StorageError or FingerprintError
    where a dataset is absent or was made from other transcripts.
    """
    from isoformer.embeddings.store import EmbeddingDataset
    from isoformer.manifest import read_manifest, read_shard
    from isoformer.storage import open_storage
    from isoformer.training.join import JoinedColumns, JoinedPlaces, JoinedStates
    from isoformer.training.joined_tokens import JoinedTokens

    inside = {m: encoders[m] for m in MODALITIES if m in encoders} if encoders else {}
    keys = {modality: key for modality, key in keys.items() if modality not in inside}
    if not keys and not inside:
        raise InputError(
            "no encoder key is given", field="keys", allowed=f"one a modality: {', '.join(MODALITIES)}"
        )
    storage = open_storage(root)
    manifest = read_manifest(storage)
    datasets = {m: EmbeddingDataset.open(storage, m, keys[m]) for m in MODALITIES if m in keys}
    pinned = {modality: JoinedStates(dataset) for modality, dataset in datasets.items()}
    for part in pinned.values():
        part.require_same_transcripts(manifest.fingerprint, len(manifest.shards))
    needed_bytes = sum(part.bytes_needed for part in pinned.values())
    parts: Mapping[Modality, JoinedStates | JoinedPlaces] = pinned
    if mode == "streamed" or (mode == "auto" and not fits_memory(needed_bytes, memory_limit_bytes)):
        parts = {modality: JoinedPlaces(dataset) for modality, dataset in datasets.items()}
    else:
        check_memory(needed_bytes, memory_limit_bytes)
    tokenised = {m: JoinedTokens(storage, manifest, m, settings) for m, settings in inside.items()}
    columns = JoinedColumns(sketches=sketches)
    for index in range(len(manifest.shards)):
        table = read_shard(storage, index)
        columns.add(table)
        for joined in parts.values():
            joined.add(table, index)
        for one in tokenised.values():
            one.add(table, index)
    specs = {modality: dataset.manifest["spec"] for modality, dataset in datasets.items()}
    return PinnedDataset(
        **columns.whole(),
        target_names=tuple(manifest.target_names),
        states={modality: part.states() for modality, part in parts.items()},
        transcripts_fingerprint=manifest.fingerprint,
        tokens={modality: part.tokens() for modality, part in tokenised.items()},
        encoder_keys={**keys, **{m: part.key for m, part in tokenised.items()}},
        encoder_names={m: str(s["name"]) for m, s in specs.items()}
        | {m: p.name for m, p in tokenised.items()},
        encoder_trained={m: str(spec["trained"]) for m, spec in specs.items()}
        | {m: part.trained for m, part in tokenised.items()},
        label_provenance=manifest.label_provenance,
        target_unit=manifest.target_unit,
        quarantined={m: part.quarantined for m, part in parts.items()}
        | {m: part.quarantined for m, part in tokenised.items()},
    )


def fits_memory(needed_bytes: int, limit_bytes: int | None = None) -> bool:
    """Whether a dataset of this size may be pinned."""
    return needed_bytes <= _memory_limit(limit_bytes)


def _memory_limit(limit_bytes: int | None) -> int:
    return int(psutil.virtual_memory().available * 0.8) if limit_bytes is None else limit_bytes


def check_memory(needed_bytes: int, limit_bytes: int | None = None) -> None:
    """InputError where a dataset of this size does not fit into memory."""
    if not fits_memory(needed_bytes, limit_bytes):
        limit = _memory_limit(limit_bytes)
        raise InputError(
            f"the dataset needs about {needed_bytes / 2**20:,.0f} MiB pinned in memory",
            field="memory",
            value=f"{limit / 2**20:,.0f} MiB free for it",
            allowed="fewer modalities, a coarser resolution (bins:N or pooled), train.data: streamed, or a "
            "larger machine",
        )
