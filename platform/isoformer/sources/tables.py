"""Delimited and Parquet tables as strings, and numbers out of them, with every bad cell named to its line and
field.

Who calls it: the readers of wide expression matrices, of the published table and of ready-made tables.
"""

from __future__ import annotations

import csv as python_csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from isoformer.errors import InputError
from isoformer.parquet_file import open_parquet
from isoformer.schema import TISSUES
from isoformer.sources.files import existing_file, open_bytes, open_text

MISSING: Final = frozenset({"", "na", "nan", "null", "none"})
"""Cells that say 'not measured', in lower case: the target is masked, and counted."""
LONGEST_HEADER_BYTES: Final = 16 << 20
_BLOCK_BYTES: Final = 32 << 20


def read_table(path: str | Path, role: str) -> pl.DataFrame:
    """A TSV, CSV (plain or compressed) or Parquet file; delimited ones as strings. InputError where it is
    ragged.
    """
    source = existing_file(path, role)
    if source.suffix == ".parquet":
        return _parquet(source, role)
    header, delimiter = read_header(source)
    return _delimited(source, header, delimiter)


def read_header(source: Path) -> tuple[list[str], str]:
    """Column names and the delimiter (tab or comma) of a delimited file."""
    with open_bytes(source) as file:
        line = file.readline(LONGEST_HEADER_BYTES).decode("utf-8-sig", "replace").rstrip("\r\n")
    delimiter = "\t" if line.count("\t") >= line.count(",") else ","
    try:
        names = next(python_csv.reader([line], delimiter=delimiter), [])
    except python_csv.Error as error:
        raise InputError(f"header cannot be read ({error})", file=source, line=1, value=line) from None
    repeated = (
        sorted({name for name in names if names.count(name) > 1}) if len(names) != len(set(names)) else []
    )
    if repeated or len(names) < 2:
        problem = "column is there twice" if repeated else "header has fewer than two columns"
        raise InputError(
            problem,
            file=source,
            line=1,
            value=repeated[0] if repeated else line,
            allowed="tab- or comma-separated names, each once",
        )
    return names, delimiter


def find_column(table: pl.DataFrame, names: Sequence[str], source: str | Path) -> str:
    """The first of these columns that the table has. InputError naming both sides where it has none."""
    found = next((name for name in names if name in table.columns), None)
    if found is None:
        raise InputError(
            "column is missing",
            file=source,
            field=names[0],
            allowed=f"one of {', '.join(names)}; the file has {_some(table.columns)}",
        )
    return found


def choose_targets(
    columns: Sequence[str], wanted: Sequence[str] | None, other: Sequence[str], source: str | Path
) -> list[str]:
    """Target columns: those asked for, or those of the 30 tissues that are there, in the published order.

    `other` names columns that are known not to be targets. InputError for a tissue that is unknown or
    missing.
    """
    if wanted:
        missing = [name for name in wanted if name not in columns]
        if missing:
            raise InputError(
                "target column is missing", file=source, field=missing[0], allowed=_some(columns)
            )
        return list(wanted)
    unknown = [name for name in columns if name not in TISSUES and name not in other]
    if unknown:
        raise InputError(
            "unknown tissue",
            file=source,
            line=1,
            field=unknown[0],
            allowed=f"{', '.join(TISSUES)}; or name the target columns in `targets`",
        )
    found = [tissue for tissue in TISSUES if tissue in columns]
    if not found:
        raise InputError("no tissue column", file=source, line=1, allowed=TISSUES)
    return found


def tpm_matrix(table: pl.DataFrame, columns: Sequence[str], source: str | Path) -> NDArray[np.float64]:
    """Values (rows, columns) in TPM, NaN where not measured. InputError names the first bad cell."""
    values = np.empty((table.height, len(columns)), dtype=np.float64)
    for place, name in enumerate(columns):
        column = table[name]
        if column.dtype == pl.String:
            text = column.str.strip_chars()
            missing = text.str.to_lowercase().is_in(list(MISSING)) | text.is_null()
            numbers = text.cast(pl.Float64, strict=False)
            _refuse_cell(numbers.is_null() & ~missing, table, name, source, "TPM is not a number")
        elif column.dtype.is_numeric() or column.dtype == pl.Null:
            numbers = column.cast(pl.Float64)
        else:
            raise InputError(
                "target column holds no numbers", file=source, field=name, value=str(column.dtype)
            )
        values[:, place] = numbers.fill_null(math.nan).to_numpy()
        _refuse_cell(numbers < 0, table, name, source, "TPM is negative")
        _refuse_cell(numbers.is_infinite(), table, name, source, "TPM is infinite")
    return values


def require_text(table: pl.DataFrame, names: Iterable[str], source: str | Path) -> None:
    """InputError where one of these columns is there and holds neither text nor numbers, as in Parquet."""
    for name in names:
        kind = table[name].dtype if name in table.columns else pl.Null()
        is_text = kind in (pl.String, pl.Null, pl.Categorical, pl.Enum)
        if not is_text and not kind.is_numeric():
            raise InputError("column holds no text", file=source, field=name, value=str(kind), allowed="text")


def require_ids(identifiers: Sequence[str | None], source: str | Path, first_line: int = 2) -> None:
    """InputError where an id is empty, or there twice: which of the two rows holds would be a guess."""
    seen: dict[str, int] = {}
    for line, identifier in enumerate(identifiers, first_line):
        if identifier is None or not identifier.strip():
            raise InputError("transcript has no id", file=source, line=line, allowed="one row a transcript")
        if identifier in seen:
            raise InputError(
                f"transcript is there twice, first on line {seen[identifier]}",
                file=source,
                line=line,
                record=identifier,
                allowed="one row a transcript",
            )
        seen[identifier] = line


def _parquet(source: Path, role: str) -> pl.DataFrame:
    """Read with Arrow: polars panics at a damaged footer."""
    try:
        with open_parquet(source) as file:
            table = file.read()
        table.validate(full=True)
        bare = pa.table(table.columns, names=table.column_names)  # polars panics at damaged metadata
        return pl.DataFrame(pl.from_arrow(bare))
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{role} cannot be read as Parquet ({error})", file=source) from None


def _delimited(source: Path, header: Sequence[str], delimiter: str) -> pl.DataFrame:
    odd: list[csv.InvalidRow] = []

    def ragged(row: csv.InvalidRow) -> str:
        odd.append(row)
        return "error"

    types: Mapping[str, pa.DataType] = dict.fromkeys(header, pa.large_string())
    with open_text(source) as file:
        try:
            table = csv.read_csv(
                pa.PythonFile(file, mode="r"),
                read_options=csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
                parse_options=csv.ParseOptions(delimiter=delimiter, invalid_row_handler=ragged),
                convert_options=csv.ConvertOptions(column_types=types, strings_can_be_null=False),
            )
        except pa.ArrowInvalid as error:
            if odd:
                raise InputError(
                    "line has another number of columns than the header",
                    file=source,
                    line=odd[0].number,
                    value=odd[0].actual_columns,
                    allowed=str(odd[0].expected_columns),
                ) from None
            raise InputError(
                f"cannot be read as a table ({str(error).splitlines()[0][:120]})", file=source
            ) from None
    return pl.DataFrame(pl.from_arrow(table))


def _refuse_cell(bad: pl.Series, table: pl.DataFrame, name: str, source: str | Path, problem: str) -> None:
    row = bad.fill_null(value=False).arg_max() if bad.any() else None
    if row is not None:
        raise InputError(
            problem,
            file=source,
            line=int(row) + 2,
            field=name,
            value=table[name][row],
            allowed="a number >= 0, or empty or NA where it was not measured",
        )


def _some(names: Sequence[str], limit: int = 40) -> str:
    return ", ".join(names[:limit]) + (f", … ({len(names)} in all)" if len(names) > limit else "")
