"""Expression: a matrix file in, TPM by transcript and target out.

Two kinds: a wide table (TSV, CSV or Parquet) of transcript × tissue, and a GTEx GCT of transcript × sample,
averaged by tissue with a sample table (`gct.py`). Who calls it: `transcripts.py`, route "annotation".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from isoformer.errors import InputError
from isoformer.sources.tables import (
    choose_targets,
    find_column,
    read_table,
    require_ids,
    require_text,
    tpm_matrix,
)

ID_COLUMNS: Final = ("transcript_id", "transcript_id_gtex", "Name", "transcript")
OTHER_COLUMNS: Final = (*ID_COLUMNS, "gene_id", "gene_id_gtex", "gene_name", "Description", "label_source")


@dataclass(frozen=True)
class Expression:
    """`tpm` (transcripts, targets) in float64, NaN where not measured; `counts` say what was read and left
    out.
    """

    transcript_ids: list[str]
    tpm: NDArray[np.float64]
    target_names: list[str]
    counts: dict[str, int]


def read_expression(
    path: str | Path, *, sample_tissues: str | Path | None = None, targets: Sequence[str] | None = None
) -> Expression:
    """Read a GCT (it needs `sample_tissues`) or a wide table. InputError names file, line, field."""
    if ".gct" in Path(path).suffixes:
        from isoformer.sources.gct import read_gct

        if sample_tissues is None:
            raise InputError(
                "a GCT needs a sample-to-tissue table",
                file=path,
                field="sample_tissues",
                allowed="a table with the columns SAMPID and SMTSD",
            )
        return _chosen(read_gct(path, sample_tissues), targets, path)
    return _read_wide(path, targets)


def _chosen(expression: Expression, targets: Sequence[str] | None, path: str | Path) -> Expression:
    names = choose_targets(expression.target_names, targets, (), path)
    columns = [expression.target_names.index(name) for name in names]
    return Expression(expression.transcript_ids, expression.tpm[:, columns], names, expression.counts)


def log1p_targets(tpm: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Natural log(1 + TPM) in float32, 0 where masked, and the mask (true: measured)."""
    measured = ~np.isnan(tpm)
    return np.log1p(np.where(measured, tpm, 0.0)).astype(np.float32), measured


def _read_wide(path: str | Path, targets: Sequence[str] | None) -> Expression:
    table = read_table(path, "expression")
    id_column = find_column(table, ID_COLUMNS, path)
    names = choose_targets(table.columns, targets, OTHER_COLUMNS, path)
    require_text(table, [id_column], path)
    identifiers = table[id_column].cast(pl.String).to_list()
    require_ids(identifiers, path)
    tpm = tpm_matrix(table, names, path)
    return Expression(
        identifiers, tpm, names, {"rows": len(identifiers), "cells_not_measured": int(np.isnan(tpm).sum())}
    )
