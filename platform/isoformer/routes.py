"""Where the sources meet: gene models or a table, expression, split → planned rows.

One function a route. Rows that cannot be used are set aside here, with a reason, before the genome is read.
Called by `transcripts.py`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from isoformer.errors import InputError
from isoformer.extraction import plan_schema
from isoformer.planning import Plan, PrepareConfig
from isoformer.schema import TISSUES
from isoformer.sources.annotation import read_annotation
from isoformer.sources.expression import Expression, log1p_targets, read_expression
from isoformer.sources.identifiers import Matches, is_par_y, match_ids, without_par
from isoformer.sources.published import SequenceTable, read_plain, read_published
from isoformer.sources.reference import Reference
from isoformer.splits import column_splits, require_no_empty_split, split_genes

Reason = tuple[str, str]
"""Why a row is set aside: the reason that is counted, and the detail that is reported."""


def plan_rows(config: PrepareConfig, reference: Reference | None) -> Plan:
    """Read the sources of the configured route and plan its rows; InputError where nothing is usable."""
    if config.route == "annotation":
        return plan_annotation(config, reference)
    return plan_table(config, reference)


def plan_annotation(config: PrepareConfig, reference: Reference | None) -> Plan:
    """Route "annotation": gene models joined with an expression matrix."""
    annotation = read_annotation(str(config.annotation))
    models = annotation.transcripts
    expression = _expression(config)
    matched = match_ids(models["transcript_id"].to_list(), expression.transcript_ids)
    _require_overlap(models, expression, matched, config)
    reasons = _reasons(models, matched, reference, config)
    kept = [number for number, reason in enumerate(reasons) if reason is None]
    _require_some(kept, reasons)
    counts = {f"annotation_{name}": count for name, count in annotation.counts.items()}
    if config.expression:
        counts |= {f"expression_{name}": count for name, count in expression.counts.items()}
        counts |= {f"expression_match_{name}": count for name, count in matched.counts.items()}
        unused = len(expression.transcript_ids) - len(set(matched.rows.values()))
        counts["expression_rows_not_in_annotation"] = unused
    rows = _planned_models(models[kept], expression, matched, config)
    return Plan(rows, expression.target_names, models.height, _set_aside(models, reasons), counts)


def plan_table(config: PrepareConfig, reference: Reference | None) -> Plan:
    """Routes "published" and "table": rows that bring their own sequences, targets and maybe split."""
    read = read_published if config.route == "published" else read_plain
    table = read(str(config.table), config.targets)
    reasons = _table_reasons(table, reference)
    kept = [number for number, reason in enumerate(reasons) if reason is None]
    _require_some(kept, reasons)
    rows = (
        table.rows[kept].with_columns(pl.Series("row", kept)).sort("gene_id", "chromosome", "transcript_id")
    )
    order = rows["row"].to_list()
    splits = _table_splits(rows, table, order, config)
    values = table.values[order]
    tpm = values if config.target_values == "tpm" else np.expm1(values)
    tss_bp = rows["tss_bp"].to_arrow() if "tss_bp" in rows.columns else pa.nulls(len(rows), pa.int64())
    planned = planned_table(rows.to_arrow(), splits, tss_bp, tpm)
    counts = {f"table_{name}": count for name, count in table.counts.items()}
    lengths = set(rows["dna"].drop_nulls().str.len_bytes()) if "dna" in rows.columns else set()
    return Plan(
        planned,
        table.target_names,
        table.rows.height,
        _set_aside(table.rows, reasons),
        counts,
        dna_bases=lengths.pop() if len(lengths) == 1 else None,
    )


def _expression(config: PrepareConfig) -> Expression:
    if config.expression:
        return read_expression(
            config.expression, sample_tissues=config.sample_tissues, targets=config.targets
        )
    names = list(config.targets or TISSUES)
    return Expression([], np.empty((0, len(names))), names, {})


def _require_overlap(
    models: pl.DataFrame, expression: Expression, matched: Matches, config: PrepareConfig
) -> None:
    if config.expression and not matched.rows:
        wanted, present = models["transcript_id"][0], (expression.transcript_ids or ["(no rows)"])[0]
        raise InputError(
            f"no transcript of the annotation is in the matrix: {wanted}, … against {present}, …",
            file=config.expression,
            field="transcript_id",
            allowed="the annotation's ids, with or without version",
        )


def _reasons(
    models: pl.DataFrame, matched: Matches, reference: Reference | None, config: PrepareConfig
) -> list[Reason | None]:
    """Why each gene model cannot be used, or None."""
    places: dict[str, set[str]] = defaultdict(set)
    for identifier, chromosome in models.select("transcript_id", "chromosome").iter_rows():
        places[without_par(identifier)].add(chromosome)
    ends = pl.col("exon_ends").list.last().alias("end_bp")
    seen: set[str] = set()
    reasons = []
    for row in models.select("transcript_id", "chromosome", "strands", "lines", ends).iter_rows(named=True):
        identifier = row["transcript_id"]
        reason = _placement_reason(row, places, reference) or _expression_reason(identifier, matched, config)
        if reason is None and identifier in seen:
            reason = "duplicate_transcript", "the same id on another chromosome was kept"
        if reason is None:
            seen.add(identifier)
        reasons.append(reason)
    return reasons


def _placement_reason(
    row: Mapping[str, Any], places: Mapping[str, set[str]], reference: Reference | None
) -> Reason | None:
    identifier, chromosome = str(row["transcript_id"]), str(row["chromosome"])
    elsewhere = {_bare(place) for place in places[without_par(identifier)]}
    if (is_par_y(identifier) and len(elsewhere) > 1) or (_bare(chromosome) == "Y" and "X" in elsewhere):
        return "par_copy", "the same transcript on Y and X: the copy on X is kept"
    if row["lines"] != 1:
        return "duplicate_transcript", f"{row['lines']} transcript lines with this id on {chromosome}"
    if row["strands"] != 1:
        return "several_strands", "exons on both strands"
    if reference is None:
        return None
    if reference.resolve(chromosome) is None:
        return "chromosome_not_in_reference", f"{chromosome} is not a sequence of the reference"
    if row["end_bp"] > reference.length(chromosome):
        return "outside_chromosome", f"ends at {row['end_bp']}, past the end of {chromosome} in the reference"
    return None


def _bare(chromosome: str) -> str:
    return chromosome.removeprefix("chr")


def _expression_reason(identifier: str, matched: Matches, config: PrepareConfig) -> Reason | None:
    if identifier in matched.rows or config.keep_unmeasured:
        return None
    if identifier in matched.ambiguous:
        return "expression_ambiguous", "several rows of the matrix have this id with other versions"
    return "no_expression", "the matrix has no row for it"


def _table_reasons(table: SequenceTable, reference: Reference | None) -> list[Reason | None]:
    """Why each row of a table cannot be used, or None. Of rows with one id, the first is kept."""
    seen: set[str] = set()
    reasons: list[Reason | None] = []
    for row, values in zip(table.rows.iter_rows(named=True), table.values, strict=True):
        reasons.append(_row_reason(row, values, seen, reference))
        seen.add(row["transcript_id"])
    return reasons


def _row_reason(
    row: Mapping[str, Any], values: np.ndarray, seen: set[str], reference: Reference | None
) -> Reason | None:
    if not row["transcript_id"] or not row["gene_id"]:
        return "without_id", "transcript_id or gene_id is empty"
    if row["transcript_id"] in seen:
        return "duplicate_transcript", "a row above has the same transcript_id"
    if np.isnan(values).all():
        return "no_expression", "no target is measured"
    if not (row["rna"] or row["protein"] or row.get("dna")):
        return "no_sequence", "neither DNA, RNA nor protein"
    if reference is not None and "tss_bp" in row and reference.resolve(str(row["chromosome"])) is None:
        return "chromosome_not_in_reference", f"{row['chromosome']} is not a sequence of the reference"
    if reference is not None and int(row.get("tss_bp") or 0) >= reference.length(str(row["chromosome"])):
        return "outside_chromosome", f"TSS at {row['tss_bp']} is past the end of {row['chromosome']}"
    return None


def _table_splits(
    rows: pl.DataFrame, table: SequenceTable, order: Sequence[int], config: PrepareConfig
) -> Sequence[str]:
    genes = rows["gene_id"].to_list()
    if config.split.method == "column":
        if table.splits is None:
            raise InputError(
                "column is missing", file=config.table, field="split", allowed="split.method: hash"
            )
        own = table.splits
        by_gene = column_splits(
            ((gene, own[row]) for gene, row in zip(genes, order, strict=True)), file=str(config.table)
        )
    else:
        by_gene = split_genes(_chromosomes_by_gene(rows), config.split)
    splits = [by_gene[gene] for gene in genes]
    require_no_empty_split(Counter(splits), config.split)
    return splits


def _chromosomes_by_gene(rows: pl.DataFrame) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for gene, chromosome in rows.select("gene_id", "chromosome").unique(maintain_order=True).iter_rows():
        found[gene].append(chromosome or "")
    return found


def _require_some(kept: Sequence[int], reasons: Sequence[Reason | None]) -> None:
    if not kept:
        most = Counter(reason for reason in reasons if reason).most_common(3)
        listed = "; ".join(f"{name} {count} times, e.g. {detail}" for (name, detail), count in most)
        raise InputError(
            f"no transcript is left to prepare: {listed}", allowed="at least one usable transcript"
        )


def _set_aside(models: pl.DataFrame, reasons: Sequence[Reason | None]) -> list[dict[str, str]]:
    pairs = zip(models["transcript_id"], models["gene_id"], reasons, strict=True)
    return [
        {"transcript_id": identifier, "gene_id": gene, "reason": reason[0], "detail": reason[1]}
        for identifier, gene, reason in pairs
        if reason is not None
    ]


def _planned_models(
    models: pl.DataFrame, expression: Expression, matched: Matches, config: PrepareConfig
) -> pa.Table:
    models = models.sort("gene_id", "chromosome", "transcript_id")
    by_gene = split_genes(_chromosomes_by_gene(models), config.split)
    splits = [by_gene[gene] for gene in models["gene_id"]]
    require_no_empty_split(Counter(splits), config.split)
    numbers = [matched.rows.get(identifier, -1) for identifier in models["transcript_id"]]
    tpm = np.vstack([expression.tpm, np.full((1, len(expression.target_names)), np.nan)])[numbers]
    plus = models["strand"] == "+"
    tss = pl.select(
        pl.when(plus).then(models["exon_starts"].list.first()).otherwise(models["exon_ends"].list.last() - 1)
    )
    return planned_table(models.to_arrow(), splits, tss.to_series().to_arrow(), tpm)


def planned_table(table: pa.Table, splits: Sequence[str], tss_bp: pa.Array, tpm: np.ndarray) -> pa.Table:
    """Rows with all of `plan_schema`'s columns: the table's own, those given, and null for the rest."""
    targets, mask = log1p_targets(tpm)
    schema = plan_schema(tpm.shape[1])
    made = {
        "split": pa.array(splits, pa.string()),
        "tss_bp": tss_bp,
        "targets": pa.FixedSizeListArray.from_arrays(pa.array(targets.ravel()), tpm.shape[1]),
        "target_mask": pa.FixedSizeListArray.from_arrays(pa.array(mask.ravel()), tpm.shape[1]),
    }
    columns = []
    for field in schema:
        column = made[field.name] if field.name in made else _column(table, field)
        columns.append(column.cast(field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _column(table: pa.Table, field: pa.Field) -> pa.ChunkedArray | pa.Array:
    return table[field.name] if field.name in table.column_names else pa.nulls(len(table), field.type)
