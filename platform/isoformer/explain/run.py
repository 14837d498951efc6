"""What `isoformer explain` does: a model and a root in, a folder of tables, plots and a summary out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from isoformer.console import Output, counted
from isoformer.errors import ConfigError, InputError
from isoformer.explain.attention import attention_table, choose_rnas, region_shares
from isoformer.explain.attribution import attribute
from isoformer.explain.cross_maps import cross_maps, map_table
from isoformer.explain.located import GeneModels, located_models, located_rows
from isoformer.explain.mutagenesis import Scope, mutagenesis
from isoformer.explain.plots import draw_attention, draw_cross_maps, draw_mutagenesis, draw_variants
from isoformer.explain.reading import position_spans
from isoformer.explain.rows import DatasetRow, dataset_rows, find_row
from isoformer.explain.sources import PUBLISHED, open_model, published_rna_encoder, rna_encoder
from isoformer.explain.tables import write_summary, write_table
from isoformer.explain.tracks import draw_tissues, draw_transcript
from isoformer.explain.variants import variant_effects
from isoformer.explain.vcf import read_variants
from isoformer.manifest import read_manifest
from isoformer.schema import MODALITIES, Modality
from isoformer.sequence_model import SequenceModel
from isoformer.settings import Settings
from isoformer.sources.annotation import read_annotation
from isoformer.sources.reference import open_dataset_reference
from isoformer.storage import open_storage


@dataclass(frozen=True)
class Asked:
    """What every verb is asked for: whose model (a run, or a source anywhere) and where the result goes."""

    folder: Path
    run: str | None = None
    source: str | None = None

    def name(self, settings: Settings) -> str:
        return self.source or self.run or settings.run


def run_attention(settings: Settings, out: Output, asked: Asked, *, against: str | None) -> dict[str, Any]:
    """Where the heads of the RNA encoder look; against a run, a model or `published`: what changed."""
    options, name = settings.explain, asked.name(settings)
    encoders = [rna_encoder(open_model(settings, run=asked.run, source=asked.source), name, options)]
    if against == PUBLISHED:
        model = open_model(settings, run=asked.run, source=asked.source)
        encoders.append(published_rna_encoder(model, options))
    elif against is not None:
        is_run = "/" not in against
        model = open_model(settings, run=against if is_run else None, source=None if is_run else against)
        encoders.append(rna_encoder(model, against, options))
    rows = dataset_rows(open_storage(settings.root), options.split)
    told = ((row.transcript_id, row.fields["rna"], row.regions) for row in rows)
    chosen = choose_rnas(told, encoders, most=options.transcripts)
    if not chosen.rnas:
        raise InputError(
            f"no RNA to read in the {options.split} split ({counted(chosen.skipped)})", file=settings.root
        )
    shares = []
    for encoder in encoders:
        with out.progress(f"attention of {encoder.name}") as advance:
            shares.append(
                region_shares(encoder, chosen.rnas, mu=options.mu, marks=options.marks, progress=advance)
            )
    table = attention_table(shares[0], shares[1] if against else None, options.significance)
    write_table(table, asked.folder, "attention")
    plot = draw_attention(table, asked.folder / f"attention.{options.format}", (name, against))
    summary = {
        "of": name, "against": against, "rnas": len(chosen.rnas), "skipped": chosen.skipped, "mu": options.mu,
        "marks": options.marks, "split": options.split, "layers": encoders[0].layers,
        "heads": encoders[0].heads,
    }  # fmt: skip
    if against:
        summary["changed"] = int((table["delta"] != 0).sum())
    return _done(out, asked.folder, "Attention", summary, [plot])


def run_transcript(
    settings: Settings, out: Output, asked: Asked, transcript_id: str, *, tissues: tuple[str, ...]
) -> dict[str, Any]:
    """One transcript: integrated gradients, and what its modalities ask of each other."""
    options = settings.explain
    model = open_model(settings, run=asked.run, source=asked.source)
    row = find_row(open_storage(settings.root), transcript_id)
    wanted = model.target_names if tissues == ("all",) else tissues
    with out.progress("integrated gradients") as advance:
        found = attribute(model, row.sequences, row.regions, options, tissues=wanted, progress=advance)
    for name, one in found.outputs.items():
        if not one.is_complete:
            difference = one.prediction - one.baseline
            out.note(
                f"{name}: attributions sum to {one.attributed:.3f}, not to {difference:.3f}: "
                "raise explain.steps, or choose another explain.baseline"
            )
    write_table(found.table, asked.folder, "attribution")
    plots = [
        draw_transcript(
            found.table, asked.folder / f"attribution.{options.format}", title=_title(row, asked, settings),
            regions=row.regions,
        )
    ]  # fmt: skip
    if wanted:
        plots.append(
            draw_tissues(found.table, asked.folder / f"attribution_tissues.{options.format}", list(wanted))
        )
    maps = _cross_maps(model, row, asked.folder, options.format)
    if not maps:
        out.note(
            f"no cross-attention to draw: the model's fusion is {model.model.config.fusion}, and it reads "
            f"{', '.join(model.modalities)}"
        )
    plots += maps
    outputs = {
        n: {**asdict(one), "delta": one.delta, "is_complete": one.is_complete}
        for n, one in found.outputs.items()
    }
    summary = {
        "transcript": row.transcript_id, "of": asked.name(settings), "baseline": options.baseline,
        "steps": options.steps, "outputs": outputs, "by_region": _by_region(found.table),
        "not_attributed": found.not_attributed, "rounding_left_out": found.rounding,
    }  # fmt: skip
    return _done(out, asked.folder, "Transcript", summary, plots)


def run_mutagenesis(
    settings: Settings, out: Output, asked: Asked, transcript_id: str, scope: Scope
) -> dict[str, Any]:
    """Every single-base change in scope."""
    options = settings.explain
    model = open_model(settings, run=asked.run, source=asked.source)
    row = find_row(open_storage(settings.root), transcript_id)
    with out.progress("mutagenesis") as advance:
        made = mutagenesis(
            model, row, scope, batch_size=options.batch_size, max_predictions=options.max_predictions,
            progress=advance,
        )  # fmt: skip
    table = made.table
    if table.is_empty():
        raise InputError("no base to change there", record=row.transcript_id)
    name = f"mutagenesis_{scope.modality}"
    write_table(table, asked.folder, name)
    which = "every change" if scope.stride == 1 else f"changes at one position in {scope.stride}"
    title = f"{_title(row, asked, settings)}: {which} of its {scope.modality.upper()}"
    plot = draw_mutagenesis(table, asked.folder / f"{name}.{options.format}", title, row.regions)
    largest = table.sort(pl.col("delta_mean").abs(), descending=True, nulls_last=True).row(0, named=True)
    summary = {
        "transcript": row.transcript_id, "of": asked.name(settings), "changes": len(table),
        "unknown_bases": made.unknown_bases,
        "consequences": _counts(table, "consequence"), "reasons": _counts(table, "reason"),
        "largest": {n: largest[n] for n in ("position", "reference", "alternative", "delta_mean")},
    }  # fmt: skip
    return _done(out, asked.folder, "Mutagenesis", summary, [plot])


def run_variants(
    settings: Settings, out: Output, asked: Asked, vcf: Path, *, annotation: str | None, every: bool
) -> dict[str, Any]:
    """A VCF's variants against the root's transcripts, or, with `every`, all those of the annotation."""
    options, storage = settings.explain, open_storage(settings.root)
    model = open_model(settings, run=asked.run, source=asked.source)
    genome = open_dataset_reference(storage, read_manifest(storage))
    path = annotation or (settings.prepare.annotation if settings.prepare else None)
    if every and path is None:
        raise ConfigError("--every-transcript needs --annotation, or prepare.annotation in the configuration")
    models = GeneModels.of(read_annotation(path) if path else None)
    variants = list(read_variants(vcf, genome, max_allele_bases=options.max_allele_bases))

    def transcripts() -> Any:
        if every:
            return located_models(models, genome, model.policy)
        return located_rows(dataset_rows(storage), models, genome, model.policy)

    with out.progress("variants") as advance:
        found = variant_effects(model, variants, transcripts, options, progress=advance)
    write_table(found.table, asked.folder, "variants")
    plot = draw_variants(found.table, model.target_names, asked.folder / f"variants.{options.format}")
    summary = {
        "vcf": str(vcf), "of": asked.name(settings), "annotation": path, "alleles": len(variants),
        "rows": len(found.table), "counts": found.counts,
    }  # fmt: skip
    return _done(out, asked.folder, "Variants", summary, [plot] if plot else [])


def _cross_maps(model: SequenceModel, row: DatasetRow, folder: Path, form: str) -> list[Path]:
    """None where the fusion has no cross-attention."""
    inputs = model.read([row.sequences]).inputs
    maps = cross_maps(model, inputs)
    if not maps:
        return []
    spans: dict[Modality, Any] = {}
    if model.model.config.fusion == "cross_attention":
        lengths = {one.asked: one.weights_HLS.shape[2] for one in maps}
        spans = {m: position_spans(model, row.sequences, m, lengths[m]) for m in MODALITIES if m in lengths}
    write_table(map_table(maps, spans, row.regions), folder, "cross_attention")
    return [draw_cross_maps(maps, folder / f"cross_attention.{form}")]


def _by_region(table: pl.DataFrame) -> dict[str, float]:
    """Sum of the mean's attribution in each modality, and in each region of the RNA."""
    summed = table.group_by("modality", "region").agg(pl.col("mean").sum()).sort("modality", "region")
    return {f"{m} {r}" if r else m: float(value) for m, r, value in summed.iter_rows()}


def _counts(table: pl.DataFrame, column: str) -> dict[str, int]:
    counted = table[column].drop_nulls().value_counts(sort=True)
    return {name: count for name, count in counted.iter_rows() if name}


def _title(row: DatasetRow, asked: Asked, settings: Settings) -> str:
    gene = row.fields["gene_name"] or row.fields["gene_id"]
    return f"{row.transcript_id} ({gene}), {Path(asked.name(settings)).name}"


def _done(
    out: Output, folder: Path, title: str, summary: dict[str, Any], plots: list[Path]
) -> dict[str, Any]:
    """Saved, shown and, with --json, printed."""
    summary = {**summary, "folder": str(folder), "plots": [str(plot) for plot in plots]}
    write_summary(summary, folder)
    out.facts(title, [(name, _told(value)) for name, value in summary.items()])
    out.result(summary)
    return summary


def _told(value: object) -> object:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_told(one)}" for name, one in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else value
