"""Transcripts with their place on a genome: their sequences made from it, as they are and as a change of the
genome makes them.

Where an annotation gives exons, RNA and protein are cut out as prepare cuts them, and must be those of the
dataset; else the RNA and protein are the dataset's, and a change moves the DNA window alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, Self

from isoformer.explain.edits import Coding, Edit, find_coding, rna_effect
from isoformer.explain.exons import WHOLE, EditedGenome, ExonModel, moved_tss, window_around
from isoformer.explain.regions import RnaRegions
from isoformer.explain.rows import DatasetRow
from isoformer.extraction import COPIED, Policy, extract_row
from isoformer.sequence_model import TranscriptSequences
from isoformer.sequences import unknown_fraction
from isoformer.sources.annotation import Annotation
from isoformer.sources.identifiers import stem
from isoformer.sources.reference import Reference
from isoformer.splicing import QuarantinedError, Spliced, splice

NO_EXON_MODEL: Final = "no_exon_model: only the DNA window changes"
OTHER_ANNOTATION: Final = "annotation_gives_other_sequences: only the DNA window changes"
SPLICE_SITE: Final = "splicing_not_predicted: only the DNA window changes"


@dataclass(frozen=True)
class Changed:
    """What a change of the genome makes of a transcript; `sequences` null: it is gone."""

    sequences: TranscriptSequences | None
    consequence: str
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Located:
    """A transcript on a genome. `fields`: transcript_id, gene_id, gene_name, chromosome, strand, tss_bp.

    `gene_model`: its row of the annotation. `given`: its sequences in the dataset. One of the two is there.
    """

    fields: Mapping[str, Any]
    genome: Reference
    policy: Policy
    gene_model: Mapping[str, Any] | None = None
    given: DatasetRow | None = None

    @property
    def chromosome(self) -> str:
        return str(self.fields["chromosome"])

    @property
    def contig(self) -> str:
        """The reference's name of its chromosome; empty where it has no place on the reference."""
        return "" if self.fields["tss_bp"] is None else _contig(self.genome, self.fields)

    @property
    def strand(self) -> str:
        return str(self.fields["strand"])

    @property
    def tss_bp(self) -> int:
        return int(self.fields["tss_bp"])

    @cached_property
    def exons(self) -> ExonModel | None:
        """None where there is no exon model, or one that gives other sequences than the dataset has."""
        if self.gene_model is None or self._without_model:
            return None
        return ExonModel.of(self.gene_model)

    @property
    def window_bp(self) -> tuple[int, int]:
        """Plus-strand bounds, which may lie outside the chromosome."""
        before = self.policy.dna_window_bases // 2
        after = self.policy.dna_window_bases - before
        if self.strand == "+":
            return self.tss_bp - before, self.tss_bp + after
        return self.tss_bp - after + 1, self.tss_bp + before + 1

    @property
    def reach_bp(self) -> tuple[int, int]:
        """From the first to the last base where a change can touch it."""
        start, end = self.window_bp
        if self.gene_model is None:
            return start, end
        return min(start, self.gene_model["exon_starts"][0]), max(end, self.gene_model["exon_ends"][-1])

    def is_touched(self, edit: Edit, splice_site_bases: int) -> bool:
        """Whether the change lies in the window, an exon or a splice site."""
        start, end = self.window_bp
        if edit.touches(start, end):
            return True
        return self.exons is not None and self.exons.place(edit, splice_site_bases) in (
            "exon",
            "splice_site",
            WHOLE,
        )

    @cached_property
    def reference(self) -> TranscriptSequences:
        """As it is. QuarantinedError where it cannot be made."""
        if self.exons is None and self.given is not None:
            return self.given.sequences
        return self._made

    def changed(self, edit: Edit, splice_site_bases: int) -> Changed:
        """What a change of the plus strand makes of it."""
        window = self._window(edit)
        if self.exons is None:
            where = _side(self.tss_bp, self.strand, edit)
            return Changed(replace(self.reference, dna=window), where, self._without_model)
        place = self.exons.place(edit, splice_site_bases)
        if place == WHOLE:
            return Changed(None, "not_known", WHOLE)
        if place != "exon":
            reason = SPLICE_SITE if place == "splice_site" else ""
            return Changed(replace(self.reference, dna=window), place, reason)
        effect = rna_effect(
            self._spliced.rna, self._regions, self._coding, self._spliced.protein, self.exons.rna_edit(edit)
        )
        sequences = self._finished(effect.rna, effect.protein, window)
        return Changed(sequences, effect.consequence, effect.reason)

    @cached_property
    def _without_model(self) -> str:
        """Why it has no exon model; empty where it has one."""
        if self.gene_model is None:
            return NO_EXON_MODEL
        if self.given is None:
            return ""
        try:
            made = self._made
        except QuarantinedError:
            return OTHER_ANNOTATION
        return "" if made == self.given.sequences else OTHER_ANNOTATION

    @cached_property
    def _made(self) -> TranscriptSequences:
        return self._finished(self._spliced.rna, self._spliced.protein, self._window(None))

    @cached_property
    def _spliced(self) -> Spliced:
        assert self.gene_model is not None
        return splice(
            self.gene_model,
            self.genome,
            broken_cds=self.policy.broken_cds,
            internal_tga=self.policy.internal_tga,
        )

    @cached_property
    def _regions(self) -> RnaRegions | None:
        return RnaRegions.of(*self._spliced.lengths, bases=len(self._spliced.rna))

    @cached_property
    def _coding(self) -> Coding | None:
        regions, made = self._regions, self._spliced
        if regions is None or not made.protein:
            return None
        return find_coding(made.rna, regions, made.protein, self.chromosome)

    def _window(self, edit: Edit | None) -> str | None:
        """None where it is mostly unknown, as prepare has it."""
        tss_bp = self.tss_bp if edit is None else moved_tss(self.tss_bp, self.strand, edit)
        genome = self.genome if edit is None else EditedGenome(self.genome, edit)
        window = window_around(genome, self.chromosome, tss_bp, self.strand, self.policy.dna_window_bases)
        return None if unknown_fraction(window) > self.policy.max_unknown_fraction else window

    def _finished(self, rna: str, protein: str | None, window: str | None) -> TranscriptSequences:
        """Cropped and checked as prepare does it."""
        row = {
            **dict.fromkeys([*COPIED, "tss_bp", "dna", "exon_starts"]),
            **dict.fromkeys(["five_utr_bases", "cds_bases", "three_utr_bases"]),
            **{"rna": rna, "protein": protein, "chromosome": self.chromosome},
        }
        made, _ = extract_row(row, None, self.policy)
        return TranscriptSequences(str(self.fields["transcript_id"]), window, made["rna"], made["protein"])


def located_rows(
    rows: Iterator[DatasetRow], models: GeneModels, genome: Reference, policy: Policy
) -> Iterator[Located]:
    """A dataset's transcripts, with their gene models where there are any."""
    for row in rows:
        model = models.find(row.transcript_id)
        is_same = model is not None and _contig(genome, model) == _contig(genome, row.fields)
        yield Located(row.fields, genome, policy, model if is_same else None, row)


def located_models(models: GeneModels, genome: Reference, policy: Policy) -> Iterator[Located]:
    """Every transcript of an annotation."""
    for model in models.by_id.values():
        yield Located({**model, "tss_bp": ExonModel.of(model).tss_bp}, genome, policy, model)


@dataclass(frozen=True)
class GeneModels:
    """An annotation's transcripts by id, and ids by their stem where one transcript has it."""

    by_id: Mapping[str, Mapping[str, Any]]
    by_stem: Mapping[str, str]

    @classmethod
    def of(cls, annotation: Annotation | None) -> Self:
        """Ids that stand there twice, or on both strands, are left out."""
        if annotation is None:
            return cls({}, {})
        frame = annotation.transcripts
        is_one = (frame["lines"] == 1) & (frame["strands"] == 1) & frame["transcript_id"].is_unique()
        by_id = {model["transcript_id"]: model for model in frame.filter(is_one).iter_rows(named=True)}
        counts = Counter(map(stem, by_id))
        return cls(by_id, {stem(name): name for name in by_id if counts[stem(name)] == 1})

    def find(self, transcript_id: str) -> Mapping[str, Any] | None:
        """The same id, else the one with the same stem."""
        return self.by_id.get(transcript_id) or self.by_id.get(self.by_stem.get(stem(transcript_id), ""))


def _contig(genome: Reference, fields: Mapping[str, Any]) -> str:
    return genome.resolve(str(fields["chromosome"] or "")) or ""


def _side(tss_bp: int, strand: str, edit: Edit) -> str:
    """Of a change of which the exons are not known."""
    is_left = edit.end <= tss_bp if strand == "+" else edit.start > tss_bp
    return "upstream" if is_left else "not_known"
