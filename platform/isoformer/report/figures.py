"""The report's figures. Each takes what a stage left and returns inline SVG, or None where there is nothing
to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from isoformer.metrics import Interval
from isoformer.report.collect import finite
from isoformer.report.svg import COLOURS, Axes, canvas, legend_above, to_svg
from isoformer.scores import ScoreRow, ScoreTable

if TYPE_CHECKING:
    from isoformer.evaluate import Evaluation

ROW_INCHES = 0.235
LEFT_EDGE = -1.0


def tissue_bars(evaluation: Evaluation, intervals: Mapping[str, Mapping[str, Interval]]) -> Markup | None:
    """R² of the run's model a tissue with its gene-level interval; the best baseline as a diamond."""
    model, baseline = evaluation.table.rows[0], best_baseline(evaluation.table)
    scores = _tissue_scores(evaluation, model)
    others = _tissue_scores(evaluation, baseline) if baseline else {}
    tissues = sorted(scores, key=lambda tissue: scores[tissue])
    if not tissues:
        return None
    with canvas(len(tissues) * ROW_INCHES + 0.9, "tissues") as (figure, axes):
        axes.barh(tissues, [scores[tissue] for tissue in tissues], height=0.7, color=COLOURS["soft"])
        for place, tissue in enumerate(tissues):
            interval = intervals.get(tissue, {}).get("r2")
            if interval is not None:
                _interval_line(axes, place, interval.low, interval.high, COLOURS["accent"])
        style = {"color": COLOURS["accent"], "markersize": 3.5, "label": "model"}
        axes.plot([scores[tissue] for tissue in tissues], tissues, "o", **style)
        known = [tissue for tissue in tissues if tissue in others]
        if baseline is not None and known:
            style = {"color": COLOURS["second"], "markersize": 3.5, "label": f"ridge on {baseline.name}"}
            axes.plot([others[tissue] for tissue in known], known, "D", **style)
        _rows(axes, len(tissues))
        axes.set_xlabel("R² over held-out transcripts")
        legend_above(axes)
        return to_svg(figure, f"R² of the model in {len(tissues)} tissues")


def score_dots(table: ScoreTable, score: str, title: str) -> Markup | None:
    """One line a row of a score table: mean over tissues and interval; colour says what the weights are."""
    rows = [row for row in reversed(table.rows) if finite(getattr(row, score).value)]
    if not rows:
        return None
    with canvas(len(rows) * ROW_INCHES + 0.9, f"ablation-{score}") as (figure, axes):
        for place, row in enumerate(rows):
            one, colour = getattr(row, score), _row_colour(row)
            _interval_line(axes, place, one.low, one.high, colour)
            axes.plot([one.value], [place], "o", color=colour, markersize=4)
        axes.set_yticks(range(len(rows)), [row_title(row) for row in rows])
        if axes.get_xlim()[0] < LEFT_EDGE:
            axes.set_xlim(left=LEFT_EDGE)
        _rows(axes, len(rows))
        axes.set_xlabel(f"{title}, mean over tissues")
        return to_svg(figure, f"{title} of {len(rows)} ways of predicting")


def curves(
    history: Sequence[Mapping[str, float]], names: Mapping[str, str], best_epoch: int | None
) -> Markup | None:
    """Metrics over epochs, one line each; the kept epoch marked."""
    lines = {label: _points(history, name) for name, label in names.items()}
    lines = {label: points for label, points in lines.items() if points}
    if not lines:
        return None
    with canvas(2.6, f"curves-{next(iter(names))}") as (figure, axes):
        for (label, points), colour in zip(lines.items(), ("accent", "second", "muted"), strict=False):
            axes.plot(*zip(*points, strict=True), color=COLOURS[colour], linewidth=1.6, label=label)
        if best_epoch is not None:
            style: dict[str, Any] = {"linewidth": 0.9, "linestyle": (0, (3, 3)), "label": "kept epoch"}
            axes.axvline(best_epoch, color=COLOURS["muted"], **style)
        axes.set_xlabel("epoch")
        legend_above(axes)
        return to_svg(figure, f"{', '.join(lines)} over {len(history)} epochs")


def sweep_history(sweep: Mapping[str, Any]) -> Markup | None:
    """Every trial's score in the order of the trials, and the best completed one so far."""
    scored = [trial for trial in sweep["trials"] if finite(trial["value"])]
    if not scored:
        return None
    with canvas(2.8, "sweep-history") as (figure, axes):
        for state, marker, colour in (("complete", "o", "accent"), ("pruned", "x", "muted")):
            points = [(trial["number"], trial["value"]) for trial in scored if trial["state"] == state]
            if points:
                style = {"color": COLOURS[colour], "markersize": 4.5, "label": state}
                axes.plot(*zip(*points, strict=True), marker, **style)
        so_far = best_so_far(scored)
        if so_far:
            line: dict[str, Any] = {"where": "post", "linewidth": 1.4, "label": "best so far"}
            axes.step(*zip(*so_far, strict=True), color=COLOURS["second"], **line)
        axes.set_xlabel("trial")
        axes.set_ylabel(f"{metric_title(sweep['metric'])} on validation genes")
        axes.xaxis.get_major_locator().set_params(integer=True)
        legend_above(axes)
        return to_svg(figure, f"scores of {len(scored)} trials")


def importance_bars(importances: Mapping[str, float]) -> Markup | None:
    """Share of the score's variance that each parameter explains."""
    named = sorted(importances.items(), key=lambda item: item[1])
    if not named:
        return None
    with canvas(len(named) * ROW_INCHES + 0.8, "importances") as (figure, axes):
        names, shares = zip(*named, strict=True)
        axes.barh(names, shares, height=0.6, color=COLOURS["accent"])
        _rows(axes, len(named))
        axes.set_xlabel("importance (fANOVA, completed trials)")
        return to_svg(figure, "importance of " + ", ".join(reversed(names)))


def best_so_far(trials: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """The best completed score after each trial."""
    best: float | None = None
    line = []
    for trial in sorted(trials, key=lambda trial: trial["number"]):
        if trial["state"] == "complete" and (best is None or trial["value"] > best):
            best = trial["value"]
        if best is not None:
            line.append((trial["number"], best))
    return line


def best_baseline(table: ScoreTable) -> ScoreRow | None:
    """The encoder-free row with the highest R²."""
    rows = [row for row in table.rows if row.trained == "none" and finite(row.r2.value)]
    return max(rows, key=lambda row: row.r2.value or 0.0, default=None)


def row_title(row: ScoreRow) -> str:
    """What a row is, in one line; random encoders are called random."""
    kind = {"ridge_baseline": "ridge, no encoder", "ridge_probe": "ridge"}.get(row.method, row.method)
    mark = "" if row.trained in ("none", "pre-trained") else f", {row.trained}"
    return f"{row.name.replace('_', ' ')} ({kind.replace('_', ' ')}{mark})"


def metric_title(metric: str) -> str:
    """`val_r2` → R²."""
    name = metric.removeprefix("val_")
    return {"r2": "R²", "spearman": "Spearman", "pearson": "Pearson"}.get(name, metric)


def _tissue_scores(evaluation: Evaluation, row: ScoreRow) -> dict[str, float]:
    return {
        one.tissue: one.r2
        for one in evaluation.per_tissue
        if (one.name, one.method) == (row.name, row.method) and one.r2 is not None
    }


def _row_colour(row: ScoreRow) -> str:
    if row.trained == "none":
        return COLOURS["second"]
    return COLOURS["muted"] if "random" in row.trained else COLOURS["accent"]


def _interval_line(axes: Axes, place: int, low: float | None, high: float | None, colour: str) -> None:
    if finite(low) and finite(high):
        axes.plot([low, high], [place, place], color=colour, linewidth=1.4)


def _points(history: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    return [(entry["epoch"], entry[name]) for entry in history if finite(entry.get(name))]


def _rows(axes: Axes, count: int) -> None:
    axes.set_ylim(-0.7, count - 0.3)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
