"""Figures of a comparison of runs: scores with their intervals, and curves over one another."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup

from isoformer.report.collect import finite
from isoformer.report.comparison import Comparison
from isoformer.report.figures import ROW_INCHES, metric_title
from isoformer.report.svg import COLOURS, Axes, canvas, legend_above, series_style, to_svg, without_middle
from isoformer.report.sweep_figures import NARROW_INCHES

NAME_LETTERS = 22


def scores(compared: Comparison, name: str) -> Markup | None:
    """A row a run: its score where it was evaluated, with the interval over genes; on validation genes."""
    rows = [(run.name, run.score(name), run.best.get(f"val_{name}")) for run in reversed(compared.runs)]
    if not any((score and finite(score.value)) or finite(value) for _, score, value in rows):
        return None
    height = len(rows) * 1.5 * ROW_INCHES + 0.9
    with canvas(height, f"compared-{name}", width_inches=NARROW_INCHES) as (figure, axes):
        for place, (_, score, validation) in enumerate(rows):
            if score is not None and finite(score.value):
                if finite(score.low) and finite(score.high):
                    line: dict[str, Any] = {"color": COLOURS["accent"], "linewidth": 1.4}
                    axes.plot([score.low, score.high], [place, place], **line)
                _dot(axes, score.value, place, "o", "accent", "held-out, 95% over genes")
            if finite(validation):
                _dot(axes, validation, place + 0.22, "D", "second", "validation")
        axes.set_yticks(range(len(rows)), [without_middle(run, NAME_LETTERS) for run, _, _ in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"{metric_title(name)}, mean over tissues")
        _legend_once(axes)
        return to_svg(figure, f"{metric_title(name)} of {len(rows)} runs")


def _dot(axes: Axes, value: float | None, place: float, marker: str, colour: str, label: str) -> None:
    axes.plot([value], [place], marker, color=COLOURS[colour], markersize=4, label=label)


def _legend_once(axes: Axes) -> None:
    """Each label in the legend once, whatever the number of rows."""
    seen: set[str] = set()
    for line in axes.get_lines():
        if line.get_label() in seen:
            line.set_label("")
        seen.add(line.get_label())
    legend_above(axes, columns=2)


def curves(compared: Comparison, name: str, title: str) -> Markup | None:
    """One metric over epochs, a line a run; the kept epoch is marked on each."""
    lines = {}
    for run in compared.runs:
        points = [(entry["epoch"], entry[name]) for entry in run.history if finite(entry.get(name))]
        if points:
            lines[run.name] = (points, run.summary["best_epoch"])
    if not lines:
        return None
    height = 2.6 + 0.16 * ((len(lines) + 1) // 2)
    with canvas(height, f"compared-{name}-curves", width_inches=NARROW_INCHES) as (figure, axes):
        for index, (name_of_run, (points, best_epoch)) in enumerate(lines.items()):
            epochs = [epoch for epoch, _ in points]
            kept = [epochs.index(best_epoch)] if best_epoch in epochs else []
            style = series_style(index) | {"markevery": kept, "markersize": 6, "linewidth": 1.5}
            axes.plot(
                epochs,
                [value for _, value in points],
                label=without_middle(name_of_run, NAME_LETTERS),
                **style,
            )
        axes.set_ylim(*_limits([v for points, _ in lines.values() for _, v in points], name))
        axes.set_xlabel("epoch")
        axes.set_ylabel(title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        legend_above(axes, columns=2)
        return to_svg(figure, f"{title} over epochs of {len(lines)} runs")


def _limits(values: list[float], name: str) -> tuple[float, float]:
    """All values with a margin, but for starts so bad that they would flatten the rest."""
    sign = -1 if name.endswith("loss") else 1
    better = sign * np.asarray(values)
    low, middle, high = np.quantile(better, (0.1, 0.5, 1.0))
    floor = better[better >= low - 2 * (high - middle)].min()
    margin = 0.05 * (high - floor) or 0.01
    first, second = sorted((sign * (floor - margin), sign * (high + margin)))
    return float(first), float(second)
