"""`isoformer explain <what>`: the options of each. What is heavy is imported when one runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from isoformer.console import Output
from isoformer.errors import InputError


@click.group()
def explain() -> None:
    """Why the model predicts what it does: attention, attribution, mutagenesis, variants."""


def _shared(function: Callable[..., None]) -> Callable[..., None]:
    """The options of all: the function gets settings, output and what is asked for."""

    @click.option("--config", type=click.Path(dir_okay=False), help="YAML file with a section a verb.")
    @click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="E.g. explain.mu=0.02.")
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
    @click.option("--run", help="A run of the root; default: the configuration's.")
    @click.option("--model", help="Instead: a bundle's folder, <root>/runs/<run> or an MLflow address.")
    @click.option(
        "--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write."
    )
    @functools.wraps(function)
    def command(
        config: str | None,
        overrides: tuple[str, ...],
        as_json: bool,
        run: str | None,
        model: str | None,
        output: Path,
        **options: Any,
    ) -> None:
        from isoformer.explain.run import Asked
        from isoformer.settings import load_settings

        if run and model:
            raise click.UsageError("give --run or --model, not both")
        function(load_settings(config, overrides), Output(as_json), Asked(output, run, model), **options)

    return command


@explain.command()
@click.option("--against", help="Another run, a model's address, or `published`: weights before training.")
@_shared
def attention(settings: Any, out: Output, asked: Any, against: str | None) -> None:
    """Share of each RNA head's attention on 5' UTR, CDS and 3' UTR, and how it moved."""
    from isoformer.explain.run import run_attention

    run_attention(settings, out, asked, against=against)


@explain.command()
@click.argument("transcript_id")
@click.option(
    "--tissue", "tissues", multiple=True, help="A tissue, beside the mean; may be repeated; or all."
)
@_shared
def transcript(settings: Any, out: Output, asked: Any, transcript_id: str, tissues: tuple[str, ...]) -> None:
    """One transcript over its regions: integrated gradients and cross-attention."""
    from isoformer.explain.run import run_transcript

    run_transcript(settings, out, asked, transcript_id, tissues=tissues)


@explain.command()
@click.argument("transcript_id")
@click.option("--modality", type=click.Choice(["rna", "dna"]), default="rna", show_default=True)
@click.option("--region", type=click.Choice(["5utr", "cds", "3utr"]), help="Of the RNA.")
@click.option("--positions", metavar="A:B", help="A to before B; RNA from 0, DNA from the TSS.")
@click.option("--window", type=click.IntRange(1), help="DNA: as --positions=-W:W.")
@click.option("--stride", default=1, type=click.IntRange(1), help="Every so manyth position.")
@_shared
def mutagenesis(
    settings: Any, out: Output, asked: Any, transcript_id: str, modality: Any, region: str | None,
    positions: str | None, window: int | None, stride: int,
) -> None:  # fmt: skip
    """Every single-base change of a transcript; one in the CDS changes the protein too."""
    from isoformer.explain.mutagenesis import Scope
    from isoformer.explain.run import run_mutagenesis

    if window is not None and (modality != "dna" or positions):
        raise click.UsageError("--window goes with --modality dna, and without --positions")
    start, end = (-window, window) if window is not None else bounds_of(positions)
    scope = Scope(modality, region, start, end, stride)
    run_mutagenesis(settings, out, asked, transcript_id, scope)


@explain.command()
@click.argument("vcf", type=click.Path(path_type=Path))
@click.option("--annotation", help="GTF or GFF3 with the exons; default: prepare.annotation.")
@click.option("--every-transcript", "every", is_flag=True, help="Of the annotation, not the root's alone.")
@_shared
def variants(settings: Any, out: Output, asked: Any, vcf: Path, annotation: str | None, every: bool) -> None:
    """A VCF's variants through DNA window, spliced RNA and protein of each transcript that they touch."""
    from isoformer.explain.run import run_variants

    run_variants(settings, out, asked, vcf, annotation=annotation, every=every)


def bounds_of(positions: str | None) -> tuple[int | None, int | None]:
    """`A:B` as numbers. InputError for anything else."""
    if positions is None:
        return None, None
    first, colon, past = positions.partition(":")
    try:
        start, end = int(first), int(past)
    except ValueError:
        start, end = 0, 0
    if not colon or start >= end:
        raise InputError("not a range", field="positions", value=positions, allowed="A:B with A < B")
    return start, end
