"""Gene models: a GTF or GFF3 file in, one row a transcript with its exons and CDS out.

GENCODE and Ensembl flavours, plain or compressed. The file is read in blocks with Arrow's CSV reader and
taken apart with polars, so memory holds the exons, not the text. Coordinates are converted here, once, to
0-based half-open.

A stop codon belongs to the CDS (GFF3 counts it in, GTF leaves it out): it is joined on here. Who calls it:
`transcripts.py`, route "annotation".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import polars as pl
import pyarrow as pa
from pyarrow import csv

from isoformer.errors import InputError
from isoformer.sources.files import existing_file, open_bytes, open_text

COLUMNS: Final = ["chromosome", "source", "feature", "start", "end", "score", "strand", "frame", "attributes"]
SELENOCYSTEINE: Final = ("Selenocysteine", "stop_codon_redefined_as_selenocysteine")
PARTS: Final = ("exon", "CDS", "stop_codon", *SELENOCYSTEINE)
_NOT_TRANSCRIPTS: Final = (
    "gene",
    "UTR",
    "five_prime_utr",
    "three_prime_utr",
    "five_prime_UTR",
    "three_prime_UTR",
    "start_codon",
    "intron",
    "chromosome",
    "biological_region",
    "scaffold",
    "region",
    "supercontig",
    "ncRNA_gene",
    "pseudogene",
)
_SEQUENCES: Final = b"##FASTA"
"""From this line on a GFF3 file holds sequences."""
_BLOCK_BYTES: Final = 16 << 20
_TAGS: Final = ("cds_start_NF", "cds_end_NF", "seleno")

Flavour = Literal["gtf", "gff3"]


@dataclass(frozen=True)
class Annotation:
    """`transcripts`: one row per transcript and chromosome; `counts`: lines by feature, and oddities by
    reason.
    """

    transcripts: pl.DataFrame
    counts: dict[str, int]


def read_annotation(path: str | Path) -> Annotation:
    """Parse a GTF or GFF3 file.

    Columns: transcript_id, chromosome, gene_id, gene_name, biotype, strand, strands and lines (1 unless the
    id is there twice), cds_start_nf, cds_end_nf, seleno, and lists in ascending order: exon_starts,
    exon_ends, cds_starts, cds_ends, cds_frames (null where absent), stop_starts, stop_ends, sec_starts.
    InputError where the file is not an annotation.
    """
    source = existing_file(path, "annotation")
    flavour: Flavour | None = None
    parts, heads, genes = [], [], []
    counts: Counter[str] = Counter()
    for block in filter(len, _blocks(source)):
        flavour = flavour or _flavour(block, source)
        counts["lines"] += len(block)
        checked = _with_coordinates(block, source)
        made, left_out = _parts(checked, flavour)
        parts.append(made)
        counts.update(left_out)
        heads.append(_heads(checked, flavour))
        if flavour == "gff3":
            genes.append(_gff3_genes(checked))
    if not counts["lines"]:
        raise InputError("annotation has no feature lines", file=source)
    assembled = _assembled(pl.concat(parts), pl.concat(heads), pl.concat(genes) if genes else None)
    if assembled.is_empty():
        raise InputError(
            "annotation has no exons of transcripts", file=source, allowed="GTF or GFF3 with exon features"
        )
    counts["transcripts"] = len(assembled)
    counts["coding"] = assembled["cds_starts"].drop_nulls().len()
    return Annotation(assembled, dict(counts))


def _blocks(source: Path) -> Iterator[pl.DataFrame]:
    problems: list[str] = []

    def odd_line(row: csv.InvalidRow) -> str:
        if row.text.startswith("#"):
            return "skip"
        problems.append(row.text)
        return "error"

    with open_text(source, until=_SEQUENCES) as file:
        try:
            reader = csv.open_csv(
                pa.PythonFile(file, mode="r"),
                read_options=csv.ReadOptions(column_names=COLUMNS, block_size=_BLOCK_BYTES),
                parse_options=csv.ParseOptions(
                    delimiter="\t", quote_char=False, invalid_row_handler=odd_line
                ),
                convert_options=csv.ConvertOptions(
                    column_types=dict.fromkeys(COLUMNS, pa.string()), strings_can_be_null=False
                ),
            )
            for batch in reader:
                yield pl.DataFrame(pl.from_arrow(batch)).filter(~pl.col("chromosome").str.starts_with("#"))
        except pa.ArrowInvalid as error:
            _refuse_line(source, problems, error)


def _refuse_line(source: Path, problems: list[str], error: pa.ArrowInvalid) -> None:
    if "Empty CSV file" in str(error):
        raise InputError("annotation has no feature lines", file=source) from None
    if not problems:
        raise InputError(
            f"cannot be read as an annotation ({str(error).splitlines()[0][:120]})", file=source
        ) from None
    number = _line_number(source, problems[0])
    raise InputError(
        "line does not have 9 tab-separated columns",
        file=source,
        line=number,
        value=problems[0],
        allowed="GTF or GFF3",
    ) from None


def _line_number(source: Path, text: str) -> int | None:
    wanted = text.encode()
    with open_bytes(source) as file:
        return next((number for number, line in enumerate(file, 1) if line.rstrip(b"\r\n") == wanted), None)


def _flavour(block: pl.DataFrame, source: Path) -> Flavour:
    attributes = block["attributes"].head(200)
    if attributes.str.contains(r'gene_id "?[^=;]').any():
        return "gtf"
    if attributes.str.contains(r"(^|;)(ID|Parent)=").any():
        return "gff3"
    raise InputError(
        "attributes are neither GTF nor GFF3",
        file=source,
        field="attributes",
        value=attributes[0],
        allowed='gene_id "…"; or ID=…;Parent=…',
    )


def _with_coordinates(block: pl.DataFrame, source: Path) -> pl.DataFrame:
    """Integer 0-based half-open coordinates; the first bad line is named."""
    checked = block.with_columns(
        (pl.col("start").cast(pl.Int64, strict=False) - 1).alias("start_bp"),
        pl.col("end").cast(pl.Int64, strict=False).alias("end_bp"),
    )
    bad = checked.filter(
        (pl.col("start_bp").is_null() | pl.col("end_bp").is_null() | (pl.col("start_bp") < 0))
        | (pl.col("start_bp") >= pl.col("end_bp"))
        | ~pl.col("strand").is_in(["+", "-", ".", "?"])
    )
    if bad.height:
        fields: dict[str, Any] = bad.row(0, named=True)
        number = _line_number(source, "\t".join(fields[name] for name in COLUMNS))
        value = f"{fields['start']}-{fields['end']} {fields['strand']}"
        raise InputError(
            "coordinates are not valid",
            file=source,
            line=number,
            field="start, end, strand",
            value=value,
            allowed="whole numbers, 1 <= start <= end, strand + or -",
        )
    return checked.drop("start", "end")


def _attribute(flavour: Flavour, *names: str) -> pl.Expr:
    """The first of these attributes that a line has."""
    pattern = r'(?:^|;)\s*{}\s+"?([^";]*)' if flavour == "gtf" else r"(?:^|;)\s*{}=([^;]*)"
    return pl.coalesce([pl.col("attributes").str.extract(pattern.format(name)) for name in names])


def _parts(block: pl.DataFrame, flavour: Flavour) -> tuple[pl.DataFrame, dict[str, int]]:
    """Lines that make up transcripts, and how many such lines say no strand or no transcript."""
    wanted = block.filter(pl.col("feature").is_in(PARTS))
    chosen = wanted.filter(pl.col("strand").is_in(["+", "-"]))
    if flavour == "gtf":
        keys = chosen.with_columns(
            _attribute("gtf", "transcript_id").alias("transcript_id"),
            _attribute("gtf", "gene_id").alias("gene_id"),
        )
    else:
        parents = _attribute("gff3", "Parent").str.split(",")
        keys = chosen.with_columns(parents.alias("transcript_id"), pl.lit(None, pl.String).alias("gene_id"))
        keys = keys.explode("transcript_id").with_columns(_bare(pl.col("transcript_id")))
    named = keys.filter(pl.col("transcript_id").fill_null("") != "")
    left_out = {
        "lines_without_strand": wanted.height - chosen.height,
        "lines_without_transcript": keys.height - named.height,
    }
    columns = ("transcript_id", "chromosome", "gene_id", "feature", "strand", "start_bp", "end_bp")
    parts = named.select(*columns, pl.col("frame").cast(pl.Int8, strict=False))
    return parts, {reason: count for reason, count in left_out.items() if count}


def _heads(block: pl.DataFrame, flavour: Flavour) -> pl.DataFrame:
    """Attributes from the transcripts' own lines."""
    if flavour == "gtf":
        chosen = block.filter(pl.col("feature") == "transcript")
        transcript_id, gene_id = _attribute("gtf", "transcript_id"), _attribute("gtf", "gene_id")
    else:
        chosen = block.filter(~pl.col("feature").is_in([*PARTS, *_NOT_TRANSCRIPTS]))
        transcript_id, gene_id = (
            _bare(_attribute("gff3", "ID")),
            _bare(_attribute("gff3", "Parent", "gene_id")),
        )
    own = _attribute(flavour, "transcript_type", "transcript_biotype", "biotype")
    # Ensembl up to release 75 writes the transcript's biotype in the source column.
    by_source = pl.when(_attribute(flavour, "transcript_source").is_not_null()).then(pl.col("source"))
    quoted = [
        pl.col("attributes").str.contains(rf'(?:tag "{tag}"|tag=[^;]*\b{tag}\b)').alias(tag.lower())
        for tag in _TAGS
    ]
    return chosen.select(
        transcript_id.alias("transcript_id"),
        "chromosome",
        gene_id.alias("head_gene_id"),
        _attribute(flavour, "gene_name").alias("gene_name"),
        pl.coalesce([own, by_source, _attribute(flavour, "gene_type", "gene_biotype")]).alias("biotype"),
        *quoted,
    )


def _gff3_genes(block: pl.DataFrame) -> pl.DataFrame:
    genes = block.filter(pl.col("feature").str.ends_with("gene"))
    name = _attribute("gff3", "gene_name", "Name").alias("own_gene_name")
    return genes.select(_bare(_attribute("gff3", "ID")).alias("gene_id"), name)


def _bare(identifier: pl.Expr) -> pl.Expr:
    """Ensembl's GFF3 writes `transcript:ENST…`, NCBI's `rna-NM_…`."""
    return identifier.str.replace(r"^(?:transcript:|gene:|rna-|gene-)", "")


def _assembled(parts: pl.DataFrame, heads: pl.DataFrame, genes: pl.DataFrame | None) -> pl.DataFrame:
    key = ["transcript_id", "chromosome"]
    ordered = parts.sort("start_bp", maintain_order=True)
    exons = (
        ordered.filter(pl.col("feature") == "exon")
        .group_by(key, maintain_order=True)
        .agg(
            pl.col("gene_id").first(),
            pl.col("strand").first(),
            pl.col("strand").n_unique().alias("strands"),
            pl.col("start_bp").alias("exon_starts"),
            pl.col("end_bp").alias("exon_ends"),
        )
    )
    cds = _listed(ordered, ["CDS"], key, starts="cds_starts", ends="cds_ends", frames="cds_frames")
    stop = _listed(ordered, ["stop_codon"], key, starts="stop_starts", ends="stop_ends")
    sec = _listed(ordered, list(SELENOCYSTEINE), key, starts="sec_starts", ends="sec_ends")
    first = heads.group_by(key, maintain_order=True).agg(pl.len().alias("lines"), pl.all().first())
    joined = exons
    for other in (cds, stop, sec, first):
        joined = joined.join(other, on=key, how="left", maintain_order="left")
    joined = joined.with_columns(
        pl.coalesce("head_gene_id", "gene_id", "transcript_id").alias("gene_id"),
        pl.col("lines").fill_null(1),
        *[pl.col(tag.lower()).fill_null(value=False) for tag in _TAGS],
    ).drop("head_gene_id", "sec_ends")
    if genes is not None:
        named = genes.unique("gene_id", keep="first")
        joined = joined.join(named, on="gene_id", how="left", maintain_order="left")
        joined = joined.with_columns(pl.coalesce("gene_name", "own_gene_name").alias("gene_name")).drop(
            "own_gene_name"
        )
    return joined


def _listed(parts: pl.DataFrame, features: list[str], key: list[str], **names: str) -> pl.DataFrame:
    columns = {"starts": "start_bp", "ends": "end_bp", "frames": "frame"}
    chosen = parts.filter(pl.col("feature").is_in(features))
    return chosen.group_by(key, maintain_order=True).agg(
        pl.col(columns[kind]).alias(name) for kind, name in names.items()
    )
