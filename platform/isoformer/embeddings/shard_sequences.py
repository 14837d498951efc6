"""The distinct sequences of one transcripts shard, cut and tokenised: the CPU stage of embedding, without
Ray.

In: a transcripts shard and a modality. Out: each distinct sequence once, as token ids laid end to end;
what was cropped or masked, by reason; and the sequences that cannot be tokenised, with the reason. DNA
windows are cut from the dataset's reference, which is copied once per node. `plan.py` asks what is
there, `pipeline.py` runs `tokenise` in tasks.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from isoformer.encoders.registry import EncoderChoice, get_spec, load_tokenizer
from isoformer.encoders.spec import EncoderSpec, Packed
from isoformer.errors import EncoderError, StorageError
from isoformer.manifest import Manifest, read_shard
from isoformer.schema import Modality, digest_column, shard_name
from isoformer.sequences import dna_window, sequence_digest
from isoformer.sources.reference import Reference, open_stored_reference
from isoformer.storage import Storage

# N distinct sequences, T tokens of all of them

NO_VALID_LETTER: Final = "no_valid_letter"
_WINDOW_COLUMNS: Final = ("chromosome", "strand", "window_start_bp", "window_end_bp")


@dataclass(frozen=True)
class TranscriptsSource:
    """Where a worker finds the transcripts and their reference: small, travels with every task."""

    storage: Storage
    reference_digest: str | None
    chromosome_aliases: Mapping[str, str]
    window_bases: int | None
    cache_dir: str | None = None

    @classmethod
    def of(cls, storage: Storage, manifest: Manifest, cache_dir: str | None = None) -> Self:
        aliases = manifest.chromosome_aliases
        return cls(storage, manifest.reference_digest, aliases, manifest.window_bases, cache_dir)


@dataclass(frozen=True)
class ShardSequences:
    """What a shard holds of one modality: its distinct sequences, sorted by digest, and their letters."""

    digests: list[str]
    letters: NDArray[np.int64]
    transcripts: int

    @property
    def duplicates(self) -> int:
        """Transcripts that share a sequence with another one of the shard."""
        return self.transcripts - len(self.digests)


@dataclass(frozen=True)
class TokenizedShard:
    """Sequence i, of digest `digests[i]`, is `token_ids[offsets[i]:offsets[i + 1]]`."""

    digests: list[str]
    token_ids: NDArray[Any]
    offsets: NDArray[np.int64]
    quarantined: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @classmethod
    def empty(cls) -> Self:
        return cls([], np.empty(0, np.int32), np.zeros(1, np.int64))

    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def part(self, members: Iterable[int]) -> TokenizedShard:
        """Some of the sequences, as a shard of their own."""
        chosen = list(members)
        return TokenizedShard([self.digests[i] for i in chosen], *self._pieces(chosen))

    def packed(self, members: Sequence[int]) -> Packed:
        """Some of the sequences, as an encoder takes them."""
        token_ids, offsets = self._pieces(members)
        return Packed(token_ids.astype(np.int32, copy=False), offsets)

    def _pieces(self, members: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        return _end_to_end([self.token_ids[self.offsets[i] : self.offsets[i + 1]] for i in members])


def shard_sequences(storage: Storage, shard: int, modality: Modality) -> ShardSequences:
    """Which distinct sequences a shard has, and how many letters each holds."""
    column = digest_column(modality)
    of_window = modality == "dna"
    table = read_shard(storage, shard, [column, *(_WINDOW_COLUMNS if of_window else [modality])])
    if of_window:
        letters = pc.subtract(table["window_end_bp"], table["window_start_bp"])
    else:
        letters = pc.utf8_length(table[modality])
    first = _first_rows(table, column)
    counted = letters.take(first).to_pylist()
    of_digest = dict(zip(table[column].take(first).to_pylist(), counted, strict=True))
    digests = sorted(of_digest)
    present = len(table) - table[column].null_count
    return ShardSequences(digests, np.array([of_digest[digest] for digest in digests], np.int64), present)


def tokenise(source: TranscriptsSource, shard: int, choice: EncoderChoice) -> TokenizedShard:
    """Cut and tokenise the distinct sequences of a shard, sorted by digest.

    A sequence that the tokenizer refuses is quarantined. EncoderError where the dataset's windows are too
    small for the encoder, StorageError where the reference is not the one that the dataset was made from.
    """
    spec, tokenizer = get_spec(choice), load_tokenizer(choice)
    digests, pieces, quarantined = [], [], {}
    counts: Counter[str] = Counter()
    for digest, sequence in _distinct(source, shard, spec):
        try:
            tokens = tokenizer(sequence)
        except EncoderError:
            quarantined[digest] = NO_VALID_LETTER
            continue
        digests.append(digest)
        pieces.append(tokens.token_ids)
        counts.update(tokens.counts)
    token_ids, offsets = _end_to_end(pieces)
    smallest = np.min_scalar_type(int(token_ids.max(initial=0)))  # a base takes a byte on the way, not four
    return TokenizedShard(digests, token_ids.astype(smallest), offsets, quarantined, dict(counts))


def require_fit(spec: EncoderSpec, window_bases: int | None, uri: str) -> None:
    """EncoderError where a dataset's DNA windows are too small for what the encoder reads."""
    if spec.window_bases is None or window_bases is None:
        return
    up, down = spec.window_bases
    center = window_bases // 2
    if up > center or down > window_bases - center:
        raise EncoderError(
            f"{spec.name} reads {up} bases upstream of the TSS and {down} from it on, but {uri} was prepared "
            f"with windows of {window_bases} bases; dna_window_bases must be at least {2 * max(up, down)}"
        )


def cut_window(source: TranscriptsSource, row: Mapping[str, Any]) -> str:
    """The DNA window of a row of the transcripts table, from the dataset's reference.

    StorageError where it is not what the row's digest says.
    """
    window = dna_window(_reference(source), row)
    if sequence_digest(window) != row["dna_digest"]:
        place = f"{row['chromosome']}:{row['window_start_bp']}-{row['window_end_bp']} ({row['strand']})"
        raise StorageError(
            f"{source.storage.uri}: {place} of its reference has digest {sequence_digest(window)}, its "
            f"transcripts say {row['dna_digest']}: the reference was changed or damaged; prepare again"
        )
    return window


def encoder_window(window: str, spec: EncoderSpec, uri: str) -> str:
    """The part of a window that the encoder reads: TSS at len(window) // 2.

    EncoderError where the window is too small; `uri` says where it came from.
    """
    if spec.window_bases is None:
        return window
    require_fit(spec, len(window), uri)
    up, down = spec.window_bases
    center = len(window) // 2
    return window[center - up : center + down]


def _end_to_end(pieces: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int64)
    return np.concatenate(pieces) if pieces else np.empty(0, np.int32), offsets


def _distinct(source: TranscriptsSource, shard: int, spec: EncoderSpec) -> Iterator[tuple[str, str]]:
    modality: Modality = spec.modality
    column = digest_column(modality)
    extra = _WINDOW_COLUMNS if modality == "dna" else ()
    table = read_shard(source.storage, shard, [column, modality, *extra])
    rows = table.take(_first_rows(table, column)).sort_by(column)
    for batch in rows.to_batches(max_chunksize=64):
        for row in batch.to_pylist():
            sequence = row[modality]
            if sequence and (not sequence.isascii() or sequence_digest(sequence) != row[column]):
                raise StorageError(
                    f"{source.storage.uri}/transcripts/{shard_name(shard)}: holds a {modality} sequence that "
                    f"is not that of its digest {row[column]}: it was damaged; prepare again"
                )
            if modality == "dna":
                sequence = encoder_window(sequence or cut_window(source, row), spec, source.storage.uri)
            yield row[column], sequence


def _first_rows(table: pa.Table, column: str) -> pa.Array:
    """Indices of the first row of each distinct digest; rows without a sequence are left out."""
    indexed = pa.table({"digest": table[column], "row": np.arange(len(table))}).drop_null()
    return indexed.group_by("digest").aggregate([("row", "min")])["row_min"]


def _reference(source: TranscriptsSource) -> Reference:
    cache = source.cache_dir or str(Path(tempfile.gettempdir(), "isoformer-reference"))
    aliases = tuple(sorted(source.chromosome_aliases.items()))
    if source.reference_digest is None:
        raise StorageError(
            f"{source.storage.uri}: its transcripts hold no DNA, and it has no reference to cut it from"
        )
    return _opened_reference(source.storage, source.reference_digest, cache, aliases)


@lru_cache(maxsize=2)
def _opened_reference(
    storage: Storage, digest: str, cache: str, aliases: tuple[tuple[str, str], ...]
) -> Reference:
    return open_stored_reference(storage, digest, cache, dict(aliases))
