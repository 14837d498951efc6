"""What is drawn stands where it is."""

from __future__ import annotations

import math

import polars as pl

from isoformer.explain.plots import mutation_grid


def table(changes: list[tuple[int, str, float]]) -> pl.DataFrame:
    return pl.DataFrame(changes, schema=["position", "alternative", "delta_mean"], orient="row")


def test_bases_that_were_not_changed_keep_their_place() -> None:
    changes = [(-2, "A", 0.1), (-1, "C", 0.2), (3, "T", -0.3)]  # N at 0, 1 and 2
    positions, step, cells = mutation_grid(table(changes))
    assert positions.tolist() == [-2, -1, 0, 1, 2, 3] and step == 1
    assert cells.shape == (4, 6)
    for position, base, delta in changes:
        assert cells["ACGT".index(base), position + 2] == delta
    assert sum(not math.isnan(value) for value in cells.ravel()) == len(changes)


def test_a_stride_is_kept() -> None:
    positions, step, cells = mutation_grid(table([(92, "G", 1.0), (100, "A", 2.0), (116, "C", 3.0)]))
    assert positions.tolist() == [92, 100, 108, 116] and step == 8
    assert cells[1, 3] == 3.0


def test_one_position_is_enough() -> None:
    positions, step, cells = mutation_grid(table([(7, "G", 1.0)]))
    assert positions.tolist() == [7] and step == 1 and cells[2, 0] == 1.0
