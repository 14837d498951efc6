"""Transcripts of a prepared dataset, with what explanations need: sequences, place and regions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from isoformer.embeddings.shard_sequences import TranscriptsSource, cut_window
from isoformer.errors import InputError
from isoformer.explain.regions import RnaRegions
from isoformer.manifest import read_manifest, read_shard
from isoformer.schema import Split
from isoformer.sequence_model import TranscriptSequences
from isoformer.sources.identifiers import match_ids
from isoformer.storage import Storage


@dataclass(frozen=True, eq=False)
class DatasetRow:
    """One transcript of a dataset; its DNA window is cut when it is asked for."""

    fields: Mapping[str, Any]
    source: TranscriptsSource

    @property
    def transcript_id(self) -> str:
        return str(self.fields["transcript_id"])

    @cached_property
    def sequences(self) -> TranscriptSequences:
        fields = self.fields
        dna = fields["dna"]
        if dna is None and fields["dna_digest"]:
            dna = cut_window(self.source, fields)
        return TranscriptSequences(self.transcript_id, dna, fields["rna"], fields["protein"])

    @property
    def regions(self) -> RnaRegions | None:
        """None for an RNA without a CDS."""
        five_utr, cds, three_utr = (self.fields[f"{name}_bases"] for name in ("five_utr", "cds", "three_utr"))
        return RnaRegions.of(five_utr, cds, three_utr, bases=len(self.fields["rna"] or ""))


def dataset_rows(storage: Storage, split: Split | None = None) -> Iterator[DatasetRow]:
    """All transcripts, or those of a split, in the dataset's order."""
    manifest = read_manifest(storage)
    source = TranscriptsSource.of(storage, manifest)
    for shard in range(len(manifest.shards)):
        for batch in read_shard(storage, shard).to_batches(max_chunksize=256):
            for fields in batch.to_pylist():
                if split is None or fields["split"] == split:
                    yield DatasetRow(fields, source)


def find_row(storage: Storage, transcript_id: str) -> DatasetRow:
    """The transcript of that id, with or without its version. InputError where there is none."""
    manifest = read_manifest(storage)
    present: list[str] = []
    places: list[tuple[int, int]] = []
    for shard in range(len(manifest.shards)):
        ids = read_shard(storage, shard, ["transcript_id"])["transcript_id"].to_pylist()
        present += ids
        places += [(shard, row) for row in range(len(ids))]
    matched = match_ids([transcript_id], present)
    if transcript_id not in matched.rows:
        raise InputError(
            "no transcript of this id is in the dataset",
            file=storage.uri,
            field="transcript_id",
            value=transcript_id,
            allowed=_some(present),
        )
    shard, row = places[matched.rows[transcript_id]]
    (fields,) = read_shard(storage, shard).slice(row, 1).to_pylist()
    return DatasetRow(fields, TranscriptsSource.of(storage, manifest))


def _some(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f", … ({len(names)} in all)" if len(names) > limit else "")
