"""A GTEx GCT (transcript × sample, 200,000 × 17,000) streamed into TPM means by tissue.

The file is read in blocks of rows; each block becomes a matrix of samples, is averaged over the samples of
every tissue, and is forgotten: memory holds one block and the result. Headers `transcript_id gene_id` (GTEx
v8 transcripts) and `Name Description` (gene files) are both known. The mean is over samples, as in the paper:
detailed tissues weigh by size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from isoformer.errors import InputError
from isoformer.schema import TISSUES
from isoformer.sources.expression import Expression
from isoformer.sources.files import checked_text, existing_file, open_bytes
from isoformer.sources.tables import MISSING, find_column, read_table, require_ids, require_text
from isoformer.sources.tissues import group_tissue

FIRST_COLUMNS: Final = (("transcript_id", "gene_id"), ("Name", "Description"))
_BLOCK_BYTES: Final = 16 << 20
_DATA_LINE: Final = 4
"""The first data line: after `#1.2`, the sizes and the header."""


def read_gct(path: str | Path, sample_tissues: str | Path) -> Expression:
    """Mean TPM by transcript and tissue, over the samples that the sample table names.

    Samples that the table does not know, or that belong to a dropped cell line, are left out and counted.
    InputError for another format, another number of rows or samples than the header says, and any value that
    is no TPM.
    """
    source = existing_file(path, "expression")
    tissue_of = read_sample_tissues(sample_tissues)
    with open_bytes(source) as raw:
        rows_stated, header = _header(raw, source)
        file = checked_text(raw, source, first_line=_DATA_LINE)
        samples = header[2:]
        weights, names, counts = _tissue_columns(samples, tissue_of, source)
        identifiers: list[str] = []
        means = []
        for found, values in _blocks(file, header, source):
            _check_values(found, values, samples, source, _DATA_LINE + len(identifiers))
            identifiers += found
            means.append(_means(values, weights))
    if len(identifiers) != rows_stated:
        raise InputError(
            "another number of rows than the header says",
            file=source,
            line=2,
            value=len(identifiers),
            allowed=f"{rows_stated} rows; the file may be truncated",
        )
    require_ids(identifiers, source, _DATA_LINE)
    return Expression(identifiers, np.vstack(means), names, {"rows": len(identifiers), **counts})


def read_sample_tissues(path: str | Path) -> dict[str, str | None]:
    """Tissue of the 30 by sample, from a table with SAMPID/SampleID and SMTSD/Tissue; None for a dropped cell
    line.
    """
    table = read_table(path, "sample_tissues")
    require_text(table, ("SAMPID", "SampleID", "sample_id", "SMTSD", "Tissue", "tissue"), path)
    samples = table[find_column(table, ("SAMPID", "SampleID", "sample_id"), path)]
    detailed = table[find_column(table, ("SMTSD", "Tissue", "tissue"), path)]
    tissues: dict[str, str | None] = {}
    for line, (sample, name) in enumerate(zip(samples, detailed, strict=True), 2):
        if not (sample or "").strip():
            raise InputError("sample has no name", file=path, line=line, field=samples.name)
        try:
            tissues[sample] = group_tissue(name or "")
        except InputError:
            raise InputError(
                "unknown tissue", file=path, line=line, field=detailed.name, value=name, allowed=TISSUES
            ) from None
    return tissues


def _header(file: IO[bytes], source: Path) -> tuple[int, list[str]]:
    version = file.readline().strip()
    if version != b"#1.2":
        found = version[:40].decode("ascii", "replace")
        raise InputError("is not a GCT", file=source, line=1, value=found, allowed="#1.2")
    sizes = file.readline().decode("ascii", "replace").split()
    try:
        header = file.readline().decode().rstrip("\r\n").split("\t")
    except UnicodeDecodeError:
        raise InputError("header is not text", file=source, line=3, allowed="UTF-8") from None
    if len(sizes) < 2 or not all(size.isdigit() for size in sizes[:2]):
        raise InputError("sizes are not two numbers", file=source, line=2, value=" ".join(sizes))
    if tuple(header[:2]) not in FIRST_COLUMNS:
        allowed = " or ".join("\\t".join(pair) for pair in FIRST_COLUMNS)
        raise InputError("header is not a GTEx one", file=source, line=3, value=header[:2], allowed=allowed)
    if len(header) - 2 != int(sizes[1]):
        raise InputError(
            "another number of samples than line 2 says",
            file=source,
            line=3,
            value=len(header) - 2,
            allowed=sizes[1],
        )
    return int(sizes[0]), header


def _tissue_columns(
    samples: Sequence[str], tissue_of: dict[str, str | None], source: Path
) -> tuple[NDArray[np.float64], list[str], dict[str, int]]:
    """Membership (samples, tissues) of 0 and 1; tissues that have a sample, in the published order."""
    groups = [tissue_of.get(sample) for sample in samples]
    used = Counter(group for group in groups if group)
    if not used:
        raise InputError(
            "no sample of the matrix is in the sample table",
            file=source,
            line=3,
            value=samples[0] if samples else None,
            allowed=f"samples such as {next(iter(tissue_of), '(none)')}",
        )
    names = [tissue for tissue in TISSUES if used[tissue]]
    membership = np.array([[group == name for name in names] for group in groups], dtype=np.float64)
    dropped = sum(sample in tissue_of and tissue_of[sample] is None for sample in samples)
    unknown = sum(sample not in tissue_of for sample in samples)
    counts = {"samples": len(samples), "samples_dropped": dropped, "samples_without_tissue": unknown}
    return membership, names, counts


def _blocks(
    file: IO[bytes], header: Sequence[str], source: Path
) -> Iterator[tuple[list[str], NDArray[np.float64]]]:
    odd: list[csv.InvalidRow] = []

    def ragged(row: csv.InvalidRow) -> str:
        odd.append(row)
        return "error"

    types = {name: pa.float64() for name in header[2:]} | {name: pa.string() for name in header[:2]}
    nulls = sorted(
        {spelling for word in MISSING for spelling in (word, word.upper(), word.capitalize(), "NaN")}
    )
    try:
        reader = csv.open_csv(
            pa.PythonFile(file, mode="r"),
            read_options=csv.ReadOptions(
                column_names=list(header), block_size=_BLOCK_BYTES, use_threads=False
            ),
            parse_options=csv.ParseOptions(delimiter="\t", quote_char=False, invalid_row_handler=ragged),
            convert_options=csv.ConvertOptions(column_types=types, null_values=nulls),
        )
        for batch in reader:
            columns = [column.to_numpy(zero_copy_only=False) for column in batch.columns[2:]]
            yield batch.column(0).to_pylist(), np.stack(columns, axis=1)
    except pa.ArrowInvalid as error:
        if odd:
            raise InputError(
                "line has another number of values than the header",
                file=source,
                line=_DATA_LINE + odd[0].number - 1,
                value=odd[0].actual_columns,
                allowed=str(odd[0].expected_columns),
            ) from None
        raise _bad_cell(source, header, error) from None


def _bad_cell(source: Path, header: Sequence[str], error: pa.ArrowInvalid) -> InputError:
    """Arrow stops at the first value that is no number; the file is gone through again to name its place."""
    with open_bytes(source) as file:
        for line, text in enumerate(file, 1):
            values = (
                text.decode("utf-8", "replace").rstrip("\r\n").split("\t")[2:] if line >= _DATA_LINE else []
            )
            numbers = pl.Series(values, dtype=pl.String).cast(pl.Float64, strict=False)
            for place in np.flatnonzero(numbers.is_null().to_numpy()):
                if values[place].strip().lower() not in MISSING:
                    return InputError(
                        "TPM is not a number",
                        file=source,
                        line=line,
                        field=header[2 + int(place)],
                        value=values[place],
                        allowed="a number >= 0",
                    )
    return InputError(f"cannot be read as a GCT ({str(error).splitlines()[0][:120]})", file=source)


def _check_values(
    identifiers: Sequence[str],
    values: NDArray[np.float64],
    samples: Sequence[str],
    source: Path,
    first_line: int,
) -> None:
    for bad, problem in ((values < 0, "TPM is negative"), (np.isinf(values), "TPM is infinite")):
        if bad.any():
            row, column = (int(place) for place in np.argwhere(bad)[0])
            raise InputError(
                problem,
                file=source,
                line=first_line + row,
                record=identifiers[row],
                field=samples[column],
                value=float(values[row, column]),
                allowed="a number >= 0",
            )


def _means(values: NDArray[np.float64], membership: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over each tissue's samples, leaving out missing values; NaN where a tissue has none."""
    measured = ~np.isnan(values)
    if measured.all():
        return values @ membership / membership.sum(axis=0)
    sums = np.where(measured, values, 0.0) @ membership
    numbers = measured.astype(np.float64) @ membership
    return np.divide(sums, numbers, out=np.full_like(sums, np.nan), where=numbers > 0)
