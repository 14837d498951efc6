"""One transcript drawn: attribution along its DNA window, its RNA over its regions, and its protein."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from isoformer.explain.plots import SIGNED, TITLES, drawing, region_blocks
from isoformer.explain.regions import RnaRegions
from isoformer.schema import MODALITIES

_ABOVE, _BELOW, _WHOLE = "#b2182b", "#2166ac", "#9a9a9a"
_AXIS: Final = {"dna": "bases from the TSS", "rna": "RNA position (bases)", "protein": "residue"}


def draw_transcript(
    table: pl.DataFrame, path: Path, *, title: str, regions: RnaRegions | None, output: str = "mean"
) -> Path:
    """A track a modality: the attribution of each token as a bar over its letters, all at one scale."""
    present = [m for m in MODALITIES if m in set(table["modality"])]
    low, high = min(0.0, float(table[output].min())), max(1e-9, float(table[output].max()))  # type: ignore[arg-type]
    margin = 0.08 * (high - low)
    ratios = [part for m in present for part in ((3.0,) if m == "dna" else (3.0, 0.32))]
    with drawing(path, 10.0, 0.7 + 1.95 * len(present)) as figure:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
        panels = iter(figure.subplots(len(ratios), 1, height_ratios=ratios, squeeze=False).ravel())
        for modality in present:
            rows = table.filter(pl.col("modality") == modality)
            track = next(panels)
            _bars(track, rows, output)
            track.set_ylim(low - margin, high + margin)
            share = float(rows[output].sum())
            track.set_title(f"{TITLES[modality]}   Σ = {share:+.3f}", loc="left")
            track.set_ylabel("attribution")
            strip = track if modality == "dna" else next(panels)
            _bounds(track, strip, rows)
            if modality == "dna":
                track.axvline(0, color="black", linewidth=0.8, linestyle=(0, (3, 2)))
                track.annotate("TSS", (0, high), (4, 0), textcoords="offset points", fontsize=8)
            else:
                _strip(strip, rows, regions if modality == "rna" else None)
            strip.set_xlabel(_AXIS[modality])
    return path


def draw_tissues(table: pl.DataFrame, path: Path, tissues: list[str]) -> Path:
    """Each tissue's attribution along the positions of each modality, in colour."""
    present = [m for m in MODALITIES if m in set(table["modality"])]
    height = 1.0 + len(present) * (0.6 + 0.16 * len(tissues))
    with drawing(path, 10.0, height) as figure:
        for row, (modality, panel) in enumerate(
            zip(present, figure.subplots(len(present), 1, squeeze=False).ravel(), strict=True)
        ):
            rows = table.filter(pl.col("modality") == modality).sort("start")
            cells = rows.select(tissues).to_numpy().T
            most = float(np.abs(cells).max()) or 1e-9
            edges = np.append(rows["start"].to_numpy(), rows["end"][-1])
            image = panel.pcolormesh(
                edges, np.arange(len(tissues) + 1), cells, cmap=SIGNED, vmin=-most, vmax=most, rasterized=True
            )
            panel.set_yticks(np.arange(len(tissues)) + 0.5, tissues, fontsize=7)
            panel.invert_yaxis()
            panel.set_title(TITLES[modality], loc="left")
            panel.set_xlabel(_AXIS[modality])
            figure.colorbar(image, ax=panel, label="attribution" if row == 0 else None, shrink=0.9)
    return path


def _bars(axes: Any, rows: pl.DataFrame, output: str) -> None:
    start, width = rows["start"].to_numpy(), (rows["end"] - rows["start"]).to_numpy()
    values = rows[output].to_numpy()
    colours = np.where(values >= 0, _ABOVE, _BELOW)
    span = float(start.max() + width.max() - start.min())
    least = span / 900  # a token narrower than about a pixel would not be seen
    axes.bar(start, values, width=np.maximum(width, least), align="edge", color=colours, linewidth=0)
    axes.axhline(0, color=_WHOLE, linewidth=0.6)


def _bounds(track: Any, strip: Any, rows: pl.DataFrame) -> None:
    bounds = (int(rows["start"].min()), int(rows["end"].max()))  # type: ignore[arg-type]
    for axes in {id(track): track, id(strip): strip}.values():
        axes.set_xlim(*bounds)
    if strip is not track:
        track.tick_params(labelbottom=False)


def _strip(axes: Any, rows: pl.DataFrame, regions: RnaRegions | None) -> None:
    """Blocks of the regions; of a protein, or an RNA without them, one plain bar."""
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_ylim(0, 1)
    if regions is None:
        axes.axvspan(*axes.get_xlim(), ymin=0, ymax=1, color=_WHOLE, linewidth=0)
        return
    bounds = axes.get_xlim()
    region_blocks(axes, regions, within=(int(bounds[0]), int(bounds[1])))
    axes.get_legend().remove()
    for name, start, end in regions.bounds():
        left, right = max(start, bounds[0]), min(end, bounds[1])
        if right - left > 0.07 * (bounds[1] - bounds[0]):
            style = {"ha": "center", "va": "center_baseline", "fontsize": 8.5, "color": "white"}
            axes.text((left + right) / 2, 0.5, TITLES[name], **style)
