"""A table is written twice: Parquet for programs, CSV for eyes. A summary is one JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from isoformer.errors import StorageError


def write_table(table: pl.DataFrame, folder: Path, name: str) -> list[Path]:
    """`<name>.parquet` and `<name>.csv` in a folder, which is made where it is missing."""
    make_folder(folder)
    paths = [folder / f"{name}.parquet", folder / f"{name}.csv"]
    table.write_parquet(paths[0])
    table.write_csv(paths[1])
    return paths


def write_summary(summary: Mapping[str, Any], folder: Path) -> Path:
    """`summary.json` in a folder."""
    make_folder(folder)
    path = folder / "summary.json"
    path.write_text(json.dumps(summary, indent=1, default=str), encoding="utf-8")
    return path


def make_folder(folder: Path) -> None:
    """StorageError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made: {error.strerror}") from None
