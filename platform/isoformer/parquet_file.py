"""The one door through which Parquet files come in that somebody else may have written.

Arrow restores a column's extension type by the name that the file states, and Ray registers one whose values
are pickles: to read such a value is to run what it holds. Our files and a user's tables are made of plain
types, so that any other is refused before a row is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def open_parquet(source: str | Path | pa.NativeFile, **options: Any) -> pq.ParquetFile:
    """As `pyarrow.parquet.ParquetFile`. ArrowInvalid where it is none, or has a type that is not plain."""
    try:
        file = pq.ParquetFile(source, **options)
        kinds = [
            (name, file.schema_arrow.field(place).type) for place, name in enumerate(file.schema_arrow.names)
        ]
    except UnicodeDecodeError as error:
        raise pa.ArrowInvalid(f"the name of a column is no text: {error}") from None
    for name, whole in kinds:
        for kind in _types(whole):
            if isinstance(kind, pa.BaseExtensionType):
                file.close()
                raise pa.ArrowInvalid(
                    f"column {name!r} is of the extension type {kind.extension_name!r}; allowed: plain types"
                )
    return file


def _types(kind: pa.DataType) -> Iterator[pa.DataType]:
    yield kind
    for number in range(kind.num_fields):
        yield from _types(kind.field(number).type)
    if pa.types.is_dictionary(kind):
        yield from _types(kind.value_type)
