"""A VCF's variants against transcripts: through DNA window, spliced RNA and protein, beside the reference.

A change of the genome moves the window (its TSS stays in the middle), the RNA where it lies in an exon, and
the protein where it lies in the CDS. Splicing is not predicted: a variant at a splice site changes the window
alone, and its row says so; and so it is for a transcript without an exon model.

Shapes: N rows of the table, K tissues.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from isoformer.errors import BudgetError
from isoformer.explain.config import ExplainConfig
from isoformer.explain.located import Located
from isoformer.explain.predictions import Progress
from isoformer.explain.vcf import Variant
from isoformer.schema import MODALITIES
from isoformer.sequence_model import SequenceModel, TranscriptSequences
from isoformer.splicing import QuarantinedError

NO_TRANSCRIPT: Final = "no_transcript"
NOT_READABLE: Final = "not_readable"


Transcripts = Callable[[], Iterable[Located]]


@dataclass(frozen=True, eq=False)
class Hit:
    """One variant and one transcript; `alternative` null: nothing to predict, and `reason` says why."""

    variant: Variant
    transcript: Located | None
    consequence: str
    reason: str
    reference: TranscriptSequences | None = None
    alternative: TranscriptSequences | None = None

    @property
    def changed(self) -> list[str]:
        """The modalities that differ."""
        if self.reference is None or self.alternative is None:
            return []
        return [m for m in MODALITIES if self.reference.of(m) != self.alternative.of(m)]


@dataclass(frozen=True)
class VariantEffects:
    """`table`: a row a variant and transcript; `counts`: rows by consequence and by reason."""

    table: pl.DataFrame
    counts: dict[str, int]


def variant_effects(
    model: SequenceModel,
    variants: Sequence[Variant],
    transcripts: Transcripts,
    options: ExplainConfig,
    *,
    progress: Progress | None = None,
) -> VariantEffects:
    """Columns: what the VCF says (position 1-based), transcript, gene, strand, consequence, changed, reason,
    detail, delta_mean, max_tissue, then `delta_<tissue>` in log1p TPM.

    Every allele has a row: a refused one and one without a transcript have no delta. `transcripts` is called
    twice: BudgetError, before anything is computed, where there may be more than `max_predictions`.
    """
    index = _Index.of(variants)
    most, unplaced = _most_hits(index, transcripts())
    if most > options.max_predictions:
        raise BudgetError(
            f"up to {most:,} predictions asked for ({len(variants):,} alleles against every transcript near "
            f"them), more than explain.max_predictions {options.max_predictions:,}: take fewer variants, or "
            "raise that limit"
        )
    rows: list[dict[str, object]] = []
    for batch in _batches(find_hits(index, transcripts(), options.splice_site_bases), options.batch_size):
        deltas_NK = _deltas(model, batch)
        rows += [_row(hit, delta_K, model) for hit, delta_K in zip(batch, deltas_NK, strict=True)]
        if progress is not None:
            progress(min(len(rows), most), most)
    return _finished(rows, model, unplaced)


@dataclass(frozen=True)
class _Index:
    """Usable variants by contig, with their plus-strand edges, and the others."""

    by_contig: dict[str, list[Variant]]
    edges_V2: dict[str, NDArray[np.int64]]
    refused: list[Variant]

    @classmethod
    def of(cls, variants: Sequence[Variant]) -> Self:
        by_contig: dict[str, list[Variant]] = {}
        for variant in variants:
            if variant.edit is not None:
                by_contig.setdefault(variant.contig, []).append(variant)
        edges = {
            c: np.array([(v.edit.start, v.edit.end) for v in vs if v.edit]) for c, vs in by_contig.items()
        }
        return cls(by_contig, edges, [variant for variant in variants if variant.edit is None])

    def near(self, transcript: Located) -> list[int]:
        """Places, among its contig's variants, of those that may touch a transcript."""
        if not transcript.contig or transcript.contig not in self.edges_V2:
            return []
        start, end = transcript.reach_bp
        edges_V2 = self.edges_V2[transcript.contig]
        return np.flatnonzero((edges_V2[:, 0] <= end) & (edges_V2[:, 1] >= start)).tolist()


def _most_hits(index: _Index, transcripts: Iterable[Located]) -> tuple[int, int]:
    """How many hits there may be, and how many transcripts have no place on the genome."""
    most = unplaced = 0
    for transcript in transcripts:
        most += len(index.near(transcript))
        unplaced += not transcript.contig
    return most, unplaced


def find_hits(index: _Index, transcripts: Iterable[Located], splice_site_bases: int) -> Iterator[Hit]:
    """Each variant with each transcript that it touches, transcript by transcript; then the others."""
    found: set[tuple[str, int]] = set()
    for transcript in transcripts:
        for place in index.near(transcript):
            variant = index.by_contig[transcript.contig][place]
            assert variant.edit is not None
            if transcript.is_touched(variant.edit, splice_site_bases):
                found.add((transcript.contig, place))
                yield _hit(variant, transcript, splice_site_bases)
    for contig, listed in index.by_contig.items():
        for place, variant in enumerate(listed):
            if (contig, place) not in found:
                yield Hit(variant, None, "", NO_TRANSCRIPT)
    yield from (Hit(variant, None, "", variant.reason) for variant in index.refused)


def _hit(variant: Variant, transcript: Located, splice_site_bases: int) -> Hit:
    assert variant.edit is not None
    try:
        changed = transcript.changed(variant.edit, splice_site_bases)
        before = transcript.reference
    except QuarantinedError as problem:
        return Hit(variant, transcript, "not_known", problem.reason)
    return Hit(variant, transcript, changed.consequence, changed.reason, before, changed.sequences)


def _batches(hits: Iterator[Hit], size: int) -> Iterator[list[Hit]]:
    while batch := list(islice(hits, size)):
        yield batch


def _deltas(model: SequenceModel, hits: Sequence[Hit]) -> NDArray[np.float32]:
    """Of each hit, alternative minus reference (N, K); NaN where there is nothing to compare.

    Hits of one transcript lie together: its reference is read once a batch.
    """
    distinct: dict[TranscriptSequences, int] = {}
    for hit in hits:
        for sequences in (hit.reference, hit.alternative) if hit.changed else ():
            assert sequences is not None
            distinct.setdefault(sequences, len(distinct))
    predicted = model.predict(list(distinct), batch_size=max(1, len(distinct)))
    deltas_NK = np.full((len(hits), len(model.target_names)), np.nan, np.float32)
    for delta_K, hit in zip(deltas_NK, hits, strict=True):
        if hit.changed and hit.reference is not None and hit.alternative is not None:
            delta_K[:] = predicted[distinct[hit.alternative]] - predicted[distinct[hit.reference]]
        elif hit.alternative is not None:
            delta_K[:] = 0.0
    return deltas_NK


def _finished(rows: Sequence[dict[str, object]], model: SequenceModel, unplaced: int) -> VariantEffects:
    numbers = {"delta_mean": pl.Float32, "max_tissue": pl.String}
    numbers |= {f"delta_{name}": pl.Float32 for name in model.target_names}
    table = pl.DataFrame(rows, schema={**_SCHEMA, **numbers}).sort("record", "alt", "transcript_id")
    counts = Counter(table["reason"].to_list())
    counts.update(table["consequence"].drop_nulls().to_list())
    counts["transcripts_without_place"] = unplaced
    return VariantEffects(table, {name: count for name, count in sorted(counts.items()) if name and count})


_SCHEMA: Final = {
    "record": pl.Int64, "chromosome": pl.String, "position": pl.Int64, "id": pl.String, "ref": pl.String,
    "alt": pl.String, "transcript_id": pl.String, "gene_id": pl.String, "gene_name": pl.String,
    "strand": pl.String, "tss_distance": pl.Int64, "consequence": pl.String, "changed": pl.String,
    "reason": pl.String, "detail": pl.String,
}  # fmt: skip


def _row(hit: Hit, delta_K: NDArray[np.float32], model: SequenceModel) -> dict[str, object]:
    variant, transcript = hit.variant, hit.transcript
    is_known = bool(np.isfinite(delta_K).all())
    largest = int(np.abs(np.nan_to_num(delta_K)).argmax())
    told: dict[str, object] = {
        "record": variant.record,
        "chromosome": variant.chromosome,
        "position": variant.position,
        "id": variant.name,
        "ref": variant.ref,
        "alt": variant.alt,
        "consequence": hit.consequence or None,
        "changed": "+".join(hit.changed),
        "reason": hit.reason or ("" if is_known else NOT_READABLE),
        "detail": variant.detail,
        "delta_mean": float(delta_K.mean()) if is_known else None,
        "max_tissue": model.target_names[largest] if is_known and delta_K[largest] else None,
    }
    told |= {
        f"delta_{name}": float(value) if is_known else None
        for name, value in zip(model.target_names, delta_K, strict=True)
    }
    if transcript is not None and variant.edit is not None:
        away = variant.edit.start - transcript.tss_bp
        told |= {name: transcript.fields.get(name) for name in ("transcript_id", "gene_id", "gene_name")}
        told |= {"strand": transcript.strand, "tss_distance": away if transcript.strand == "+" else -away}
    return told
