"""Plots of explanations, SVG or PNG. Figures are made without pyplot: nothing global is touched.

Blue is below zero and red above, white is zero, in every plot; the scale is symmetric.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from isoformer.explain.cross_maps import CrossMap
from isoformer.explain.mutagenesis import BASES
from isoformer.explain.regions import REGIONS, RnaRegions
from isoformer.explain.tables import make_folder

Figure = Any
Axes = Any
TITLES: Final = {
    "5utr": "5′ UTR", "cds": "CDS", "3utr": "3′ UTR", "dna": "DNA", "rna": "RNA", "protein": "protein"
}  # fmt: skip
COLOURS: Final = {"5utr": "#8da0cb", "cds": "#1b6f5c", "3utr": "#e5a55b"}
SIGNED: Final = "RdBu_r"
_MOST_CELLS: Final = 400
_MOST_ROWS: Final = 30
_SETTINGS: Any = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none",
    "svg.hashsalt": "isoformer", "text.parse_math": False, "axes.titlesize": 9.5,
}  # fmt: skip


@contextmanager
def drawing(path: Path, width_inches: float, height_inches: float) -> Iterator[Figure]:
    """A figure that is saved at the end of the block; the ending of `path` says as what."""
    import matplotlib
    from matplotlib.figure import Figure

    make_folder(path.parent)
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
        yield figure
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=150, facecolor="white", metadata=metadata)


def draw_attention(table: pl.DataFrame, path: Path, names: tuple[str, str | None]) -> Path:
    """A heat map a region, layers upwards, heads to the right: the change, or, of one encoder, its share."""
    name, other = names
    value = "delta" if other else "rho_A"
    layers, heads = int(table["layer"].max()), int(table["head"].max())  # type: ignore[arg-type]
    most = 1.0 if other else float(table[value].max() or 1.0)  # type: ignore[arg-type]
    style = {"cmap": SIGNED if other else "Blues", "vmin": -1.0 if other else 0.0, "vmax": most}
    height = min(9.0, 1.6 + 0.22 * layers)
    with drawing(path, max(6.5, min(12.0, 2.4 + 0.5 * heads)), height) as figure:
        axes = figure.subplots(1, len(REGIONS), sharey=True)
        for region, panel in zip(REGIONS, axes, strict=True):
            rows = table.filter(pl.col("region") == region).sort("layer", "head")
            cells = rows[value].cast(pl.Float64).fill_null(float("nan")).to_numpy().reshape(layers, heads)
            image = panel.imshow(cells, origin="lower", aspect="auto", **style)
            panel.set_title(TITLES[region])
            panel.set_xlabel("head")
            _whole_ticks(panel, layers, heads)
        axes[0].set_ylabel("layer")
        label = f"Δρ, {name} against {other}" if other else f"ρ, {name}"
        figure.colorbar(image, ax=axes, label=label, shrink=0.9)
    return path


def draw_cross_maps(maps: Sequence[CrossMap], path: Path) -> Path:
    """A panel a unit, mean over heads, each row brought to its own largest: where each position asks."""
    columns = min(3, len(maps))
    rows = -(-len(maps) // columns)
    with drawing(path, 3.4 * columns + 0.6, 3.0 * rows + 0.3) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for one, panel in zip(maps, panels, strict=False):
            cells_LS = binned(binned(one.weights_HLS.mean(axis=0), axis=0), axis=1)
            uniform = cells_LS.shape[1] / one.weights_HLS.shape[2] / max(1, cells_LS.shape[1])
            image = panel.imshow(
                cells_LS / max(uniform, 1e-9), origin="lower", aspect="auto", cmap="magma", vmin=0,
                interpolation="nearest",
            )  # fmt: skip
            panel.set_title(f"block {one.block}: {TITLES[one.asking]} asks {TITLES[one.asked]}")
            panel.set_xlabel(f"{TITLES[one.asked]} position")
            panel.set_ylabel(f"{TITLES[one.asking]} position")
            figure.colorbar(image, ax=panel, label="attention / even", shrink=0.85)
        for panel in panels[len(maps) :]:
            panel.set_visible(False)
    return path


def draw_mutagenesis(table: pl.DataFrame, path: Path, title: str, regions: RnaRegions | None) -> Path:
    """Bases by positions in colour, over them the largest change at each position, under them the regions."""
    positions, step, cells = mutation_grid(table)
    known = np.nan_to_num(cells)
    largest = known[np.abs(known).argmax(axis=0), np.arange(len(positions))]
    most = float(np.abs(largest).max(initial=0)) or 1.0
    shown, middle = strongest(cells), positions + 0.5
    edges = (float(middle[0] - step / 2), float(middle[-1] + step / 2))
    is_rna = bool(len(table)) and table["modality"][0] == "rna"
    with drawing(path, 9.5, 3.6) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[1.2, 1])
        upper.vlines(middle, 0, largest, color="#444444", linewidth=_line_points(len(positions)))
        upper.axhline(0, color="#9a9a9a", linewidth=0.6)
        upper.set_ylabel("largest Δ")
        upper.set_title(title, loc="left", pad=18 if is_rna and regions is not None else None)
        extent = (*edges, len(BASES) - 0.5, -0.5)
        image = lower.imshow(
            shown, aspect="auto", cmap=SIGNED, vmin=-most, vmax=most, extent=extent, interpolation="nearest"
        )
        lower.set_yticks(range(len(BASES)), list(BASES))
        lower.set_facecolor("#d4d4d4")
        lower.set_xlabel("RNA position (bases)" if is_rna else "bases from the TSS")
        figure.colorbar(image, ax=[upper, lower], label="Δ log1p TPM, mean over tissues", shrink=0.9)
        if is_rna and regions is not None:
            region_blocks(upper, regions, above=True, within=edges)
    return path


def mutation_grid(table: pl.DataFrame) -> tuple[NDArray[np.int64], int, NDArray[np.float64]]:
    """Positions at even steps from the first to the last, their step, and the change of each base there
    (bases, positions); NaN where nothing was changed, as at the base itself or at an N.
    """
    there = table["position"].unique().sort().to_numpy()
    step = int(np.gcd.reduce(np.diff(there))) or 1 if len(there) > 1 else 1
    positions = np.arange(there[0], there[-1] + 1, step)
    cells = np.full((len(BASES), len(positions)), np.nan)
    for position, base, delta in table.select("position", "alternative", "delta_mean").iter_rows():
        place = (position - there[0]) // step
        cells[BASES.index(base), place] = np.nan if delta is None else delta
    return positions, step, cells


def draw_variants(table: pl.DataFrame, target_names: Sequence[str], path: Path) -> Path | None:
    """The variants that move most, by tissue. None where none is predicted."""
    known = table.filter(pl.col("delta_mean").is_not_null() & (pl.col("changed") != ""))
    if known.is_empty():
        return None
    columns = [f"delta_{name}" for name in target_names]
    size = pl.max_horizontal(pl.col(column).abs() for column in columns)
    top = known.sort(size, descending=True).head(_MOST_ROWS)
    cells = top.select(columns).to_numpy()
    most = float(np.abs(cells).max()) or 1.0
    labels = [_variant_label(row) for row in top.iter_rows(named=True)]
    with drawing(path, 3.6 + 0.24 * max(8, len(columns)), 1.9 + 0.2 * len(top)) as figure:
        panel = figure.subplots()
        image = panel.imshow(
            cells, aspect="auto", cmap=SIGNED, vmin=-most, vmax=most, interpolation="nearest"
        )
        panel.set_yticks(range(len(labels)), labels, fontsize=7)
        panel.set_xticks(range(len(columns)), target_names, rotation=90, fontsize=7.5)
        panel.set_title(f"{len(top)} of {len(known)} predicted, largest first", loc="left")
        figure.colorbar(image, ax=panel, label="Δ log1p TPM", shrink=0.6)
    return path


def region_blocks(
    axes: Axes, regions: RnaRegions, *, above: bool = False, within: tuple[float, float] | None = None
) -> None:
    """5' UTR, CDS and 3' UTR as blocks along the position axis: over the axes, or in the middle of them."""
    first, past = within or (0, regions.cds_end + regions.three_utr)
    y, height = (1.02, 0.08) if above else (0.0, 1.0)
    for name, start, end in regions.bounds():
        left, right = max(start, first), min(end, past)
        if right > left:
            bar = axes.axvspan(
                left, right, ymin=y, ymax=y + height, color=COLOURS[name], linewidth=0, clip_on=False
            )
            bar.set_label(TITLES[name])
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles, labels, loc="lower right", bbox_to_anchor=(1.0, 1.13 if above else 1.0), ncols=3,
        frameon=False, fontsize=8, handlelength=1.2, borderaxespad=0,
    )  # fmt: skip


def binned(values: NDArray[Any], axis: int, most: int = _MOST_CELLS) -> NDArray[np.float64]:
    """Sums of neighbours along the second axis, means along the first, in at most `most` cells."""
    length = values.shape[axis]
    if length <= most:
        return values.astype(np.float64)
    edges = np.arange(most) * length // most
    summed = np.add.reduceat(values.astype(np.float64), edges, axis=axis)
    counts = np.diff([*edges, length])
    return summed / np.expand_dims(counts, 1 - axis)


def strongest(cells: NDArray[np.float64], most: int = 1500) -> NDArray[np.float64]:
    """Of neighbouring columns the value farthest from zero, in at most `most` columns; NaN where none is."""
    length = cells.shape[1]
    if length <= most:
        return cells
    groups = np.array_split(np.arange(length), most)
    picked = [np.abs(np.nan_to_num(cells[:, group])).argmax(axis=1) for group in groups]
    rows = np.arange(len(cells))
    return np.stack([cells[rows, group[index]] for group, index in zip(groups, picked, strict=True)], axis=1)


def _line_points(count: int) -> float:
    return float(np.clip(450 / max(1, count), 0.35, 3.0))


def _variant_label(row: dict[str, Any]) -> str:
    change = f"{_short(row['ref'])}>{_short(row['alt'])}"
    return f"{row['chromosome']}:{row['position']} {change}  {row['consequence']}  {row['transcript_id']}"


def _short(allele: str, limit: int = 6) -> str:
    return allele if len(allele) <= limit else f"{allele[: limit - 1]}…"


def _whole_ticks(axes: Axes, layers: int, heads: int) -> None:
    for count, ticks in ((layers, axes.set_yticks), (heads, axes.set_xticks)):
        step = max(1, -(-count // 12))
        places = range(0, count, step)
        ticks(list(places), [str(place + 1) for place in places])
