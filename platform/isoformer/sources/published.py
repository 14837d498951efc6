"""Tables that bring their own sequences: the published table's layout, and plain tables.

`read_published` reads transcript, gene, split, place, RNA, UTRs, CDS, protein and TPM by tissue; the DNA is
cut from a reference. `read_plain` reads `dna, rna, protein` and target columns. Both give a `SequenceTable`
of one row a transcript. Who calls it: `routes.py`, routes "published" and "table".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from isoformer.errors import InputError
from isoformer.schema import TISSUES
from isoformer.sources.expression import ID_COLUMNS
from isoformer.sources.tables import choose_targets, find_column, read_table, require_text, tpm_matrix

GENE_COLUMNS: Final = ("gene_id_gtex", "gene_id", "Description")
DNA_COLUMNS: Final = ("dna", "dna_seq", "DNA")
RNA_COLUMNS: Final = ("rna", "rna_seq", "RNA")
PROTEIN_COLUMNS: Final = ("protein", "protein_seq", "Protein")
_TEXT_COLUMNS: Final = (
    *ID_COLUMNS, *GENE_COLUMNS, *DNA_COLUMNS, *RNA_COLUMNS, *PROTEIN_COLUMNS, "gene_name", "chr",
    "chromosome", "strand", "start", "end", "biotype", "transcript_type", "split", "5UTR", "CDS", "3UTR",
)  # fmt: skip
_NUMBERED_LABEL: Final = re.compile(r"labels?_(\d+)")


@dataclass(frozen=True)
class SequenceTable:
    """`rows` has the columns of a planned row that are known; `splits` is the table's own column, or None.

    `values` (rows, targets) are as the file has them, NaN where not measured.
    """

    rows: pl.DataFrame
    values: NDArray[np.float64]
    target_names: list[str]
    splits: list[str | None] | None
    counts: dict[str, int]


def read_published(path: str | Path, targets: Sequence[str] | None = None) -> SequenceTable:
    """The published layout. `start` and `end` are 1-based, closed; the TSS is `start` on + and `end` on -.

    InputError where a column is missing, or a place or TPM is not valid.
    """
    table = read_table(path, "table")
    require_text(table, _TEXT_COLUMNS, path)
    names = list(targets) if targets else [tissue for tissue in TISSUES if tissue in table.columns]
    choose_targets(names, names, (), path)
    if not names:
        raise InputError("no tissue column", file=path, line=1, allowed=TISSUES)
    rows = table.select(
        _text(table, ID_COLUMNS, path).alias("transcript_id"),
        _text(table, GENE_COLUMNS, path).alias("gene_id"),
        _optional(table, ("gene_name",), "gene_name"),
        _text(table, ("chr", "chromosome"), path).alias("chromosome"),
        _text(table, ("strand",), path).alias("strand"),
        _optional(table, ("biotype", "transcript_type"), "biotype"),
        _tss(table, path).alias("tss_bp"),
        _text(table, RNA_COLUMNS, path).alias("rna"),
        _text(table, PROTEIN_COLUMNS, path).alias("protein"),
        *_utr_lengths(table),
    )
    return _sequence_table(table, rows, names, path)


def read_plain(path: str | Path, targets: Sequence[str] | None = None) -> SequenceTable:
    """A table with any of dna, rna and protein, and targets: those named, the 30 tissues, or `labels_0` and
    on.

    Without a transcript_id, rows are numbered; without a gene_id, each transcript is its own gene, and that
    is counted.
    """
    table = read_table(path, "table")
    require_text(table, _TEXT_COLUMNS, path)
    if not any(name in table.columns for name in (*DNA_COLUMNS, *RNA_COLUMNS, *PROTEIN_COLUMNS)):
        raise InputError("no sequence column", file=path, line=1, allowed="dna, rna, protein")
    numbered = sorted(filter(_NUMBERED_LABEL.fullmatch, table.columns), key=_label_number)
    names = list(targets or [tissue for tissue in TISSUES if tissue in table.columns] or numbered)
    if not names:
        raise InputError(
            "no target column",
            file=path,
            line=1,
            allowed="tissue names, labels_0 …, or name them in `targets`",
        )
    choose_targets(table.columns, names, (), path)
    table = table.with_row_index("_row", 1)
    identifier = next((pl.col(name) for name in ID_COLUMNS if name in table.columns), None)
    identifier = pl.format("row-{}", "_row") if identifier is None else _emptied(identifier)
    rows = table.select(
        identifier.alias("transcript_id"),
        pl.coalesce(_optional(table, GENE_COLUMNS, "gene_id"), identifier).alias("gene_id"),
        _optional(table, ("gene_name",), "gene_name"),
        _optional(table, ("chr", "chromosome"), "chromosome"),
        _optional(table, ("strand",), "strand"),
        _optional(table, ("biotype", "transcript_type"), "biotype"),
        _optional(table, DNA_COLUMNS, "dna"),
        _optional(table, RNA_COLUMNS, "rna"),
        _optional(table, PROTEIN_COLUMNS, "protein"),
    )
    genes = table.with_columns(_optional(table, GENE_COLUMNS, "_gene"))["_gene"]
    return _sequence_table(table, rows, names, path, rows_without_gene_id=genes.null_count())


def _sequence_table(
    table: pl.DataFrame, rows: pl.DataFrame, names: list[str], path: str | Path, **counts: int
) -> SequenceTable:
    if not rows.height:
        raise InputError("table has no rows", file=path)
    values = tpm_matrix(table, names, path)
    splits = table["split"].cast(pl.String).to_list() if "split" in table.columns else None
    counted = {"rows": rows.height, "cells_not_measured": int(np.isnan(values).sum()), **counts}
    return SequenceTable(rows, values, names, splits, counted)


def _text(table: pl.DataFrame, names: Sequence[str], path: str | Path) -> pl.Expr:
    return _emptied(pl.col(find_column(table, names, path)))


def _optional(table: pl.DataFrame, names: Sequence[str], alias: str) -> pl.Expr:
    found = next((name for name in names if name in table.columns), None)
    column = pl.lit(None, pl.String) if found is None else _emptied(pl.col(found))
    return column.alias(alias)


def _emptied(column: pl.Expr) -> pl.Expr:
    """Empty cells as null."""
    text = column.cast(pl.String).str.strip_chars()
    return pl.when(text != "").then(text)


def _tss(table: pl.DataFrame, path: str | Path) -> pl.Series:
    strand = table[find_column(table, ("strand",), path)].cast(pl.String)
    start, end = (
        table[find_column(table, (name,), path)].cast(pl.Int64, strict=False) for name in ("start", "end")
    )
    bad = (
        ~strand.is_in(["+", "-"]) | start.is_null() | end.is_null() | (start < 1) | (end < start)
    ).fill_null(True)
    if bad.any():
        row = int(bad.arg_max() or 0)
        found = f"{table['start'][row]}-{table['end'][row]} {strand[row]}"
        raise InputError(
            "place is not valid",
            file=path,
            line=row + 2,
            field="start, end, strand",
            value=found,
            allowed="whole numbers, 1 <= start <= end, strand + or -",
        )
    return pl.select(pl.when(strand == "+").then(start - 1).otherwise(end - 1)).to_series()


def _utr_lengths(table: pl.DataFrame) -> list[pl.Expr]:
    """Lengths of 5UTR, CDS and 3UTR; all null where the transcript has no CDS."""
    named = {"five_utr_bases": "5UTR", "cds_bases": "CDS", "three_utr_bases": "3UTR"}
    if not all(name in table.columns for name in named.values()):
        return [pl.lit(None, pl.Int32).alias(alias) for alias in named]
    coding = _emptied(pl.col("CDS")).is_not_null()
    lengths = {alias: _emptied(pl.col(name)).str.len_bytes().fill_null(0) for alias, name in named.items()}
    return [pl.when(coding).then(length).cast(pl.Int32).alias(alias) for alias, length in lengths.items()]


def _label_number(name: str) -> int:
    found = _NUMBERED_LABEL.fullmatch(name)
    return int(found.group(1)) if found else -1
