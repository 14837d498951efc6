"""What the parameters did: parallel coordinates over all of them, and the score against each.

A parameter that a trial does not have (its condition was not met) is a gap in the trial's line and no point
in the slice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from isoformer.report.figures import metric_title
from isoformer.report.study import Study, Trial
from isoformer.report.study_facts import categories, is_numeric, shown_choice
from isoformer.report.svg import COLOURS, Axes, canvas, log_axis, to_svg
from isoformer.report.sweep_figures import STATES, TOP, score_range, score_title, short, words

SLICE_INCHES = 3.0
AXIS_INCHES = 1.25
JITTER = 0.22
SPREAD, GOLDEN_RATIO = 0.05, 0.618034
"""Lines through one category are set apart by their trial's number, evenly whatever the numbers."""


class Scale:
    """Puts a parameter's values on an axis from 0 to 1, evenly for categories, by logarithm where it says."""

    def __init__(self, study: Study, name: str) -> None:
        self.name = name
        self.labels = [] if is_numeric(study, name) else categories(study, name)
        known = study.space.get(name)
        self.is_log = bool(known and known.log)
        drawn = [float(t.params[name]) for t in study.trials if name in t.params] if not self.labels else []
        ends = [known.low, known.high] if known else []
        values = [value for value in [*drawn, *ends] if value is not None and math.isfinite(value)]
        self.low, self.high = (min(values), max(values)) if values else (0.0, 1.0)

    def place(self, value: Any) -> float:
        if self.labels:
            return self._even(self.labels.index(shown_choice(value)))
        low, high, at = (self._bent(one) for one in (self.low, self.high, float(value)))
        return 0.5 if high == low else (at - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """Places and what stands there: every category, or the ends of a range and its middle."""
        if self.labels:
            return [(self._even(index), short(words(label), 17)) for index, label in enumerate(self.labels)]
        low, high = self._bent(self.low), self._bent(self.high)
        middle = math.exp((low + high) / 2) if self.is_log else (low + high) / 2
        return [(0.0, f"{self.low:.2g}"), (0.5, f"{middle:.2g}"), (1.0, f"{self.high:.2g}")]

    def _even(self, index: int) -> float:
        return 0.5 if len(self.labels) == 1 else index / (len(self.labels) - 1)

    def _bent(self, value: float) -> float:
        return math.log(value) if self.is_log else value


def parallel_coordinates(study: Study) -> Markup | None:
    """A line a trial through its parameters to its score; the best are drawn last, in another colour."""
    best = study.ranked()[:TOP]
    if not best or not study.parameters:
        return None
    scales = [Scale(study, name) for name in study.parameters]
    limits = score_range(study)
    numbers = {trial.number for trial in best}
    others = [trial for trial in study.in_state("complete") if trial.number not in numbers]
    faintness = min(0.4, max(0.08, 40 / max(1, len(study.trials))))
    width = max(6.0, AXIS_INCHES * (len(scales) + 1))
    with canvas(4.0, "parallel", width_inches=width) as (figure, axes):
        for trials, colour, style in (
            (study.in_state("pruned"), "muted", {"linewidth": 0.6, "alpha": 0.75 * faintness}),
            (others, "accent", {"linewidth": 0.9, "alpha": faintness}),
            (best[::-1], "second", {"linewidth": 1.7, "alpha": 0.95}),
        ):
            for trial in trials:
                _line(axes, trial, scales, limits, {**style, "color": COLOURS[colour]})
        _axes_of(axes, scales, limits, metric_title(study.targets[0].name))
        return to_svg(
            figure, f"parameters and score of {len(study.trials)} trials, the best {len(best)} marked"
        )


def _line(
    axes: Axes, trial: Trial, scales: Sequence[Scale], limits: tuple[float, float], style: dict[str, Any]
) -> None:
    """Unbroken over neighbouring axes; a value with a gap on both sides is a point."""
    low, high = limits
    score = float(np.clip(trial.score or 0.0, low, high))
    shift = SPREAD * ((trial.number * GOLDEN_RATIO) % 1 - 0.5)
    heights = [
        s.place(trial.params[s.name]) + (shift if s.labels else 0.0) if s.name in trial.params else math.nan
        for s in scales
    ]
    heights.append((score - low) / (high - low))
    axes.plot(range(len(heights)), heights, solid_joinstyle="round", **style)
    known = [math.isfinite(height) for height in heights]
    alone = [
        place for place, here in enumerate(known)
        if here and not any(known[max(0, place - 1) : place] + known[place + 1 : place + 2])
    ]  # fmt: skip
    if alone:
        axes.plot(alone, [heights[place] for place in alone], "o", markersize=3, **style)


def _axes_of(axes: Axes, scales: Sequence[Scale], limits: tuple[float, float], title: str) -> None:
    ends = [(0.0, f"{limits[0]:.3f}"), (0.5, f"{sum(limits) / 2:.3f}"), (1.0, f"{limits[1]:.3f}")]
    box = {"facecolor": COLOURS["paper"], "edgecolor": "none", "pad": 0.8, "alpha": 0.8}
    for place, ticks in enumerate([*(scale.ticks() for scale in scales), ends]):
        axes.axvline(place, color=COLOURS["ink"], linewidth=0.8, alpha=0.7)
        for height, text in ticks:
            axes.text(place + 0.04, height, text, fontsize=8, va="center", bbox=box, zorder=5)
    names = [short(words(scale.name), 16) for scale in scales]
    axes.set_xticks(range(len(scales) + 1), [*names, title], fontweight="bold")
    axes.tick_params(axis="x", length=0, top=True, bottom=False, labeltop=True, labelbottom=False)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(scales) + 0.55)
    axes.set_ylim(-0.06, 1.06)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def slices(study: Study) -> list[tuple[str, Markup]]:
    """Name and figure of each parameter that trials have: score against its values."""
    found = []
    for name in study.parameters:
        if any(name in trial.params for state, *_ in STATES for trial in study.in_state(state)):
            found.append((name, _slice(study, name)))
    return found


def _slice(study: Study, name: str) -> Markup:
    scale = Scale(study, name)
    height = max(2.1, 0.3 * len(scale.labels) + 0.7)
    with canvas(height, f"slice-{study.parameters.index(name)}", width_inches=SLICE_INCHES) as (figure, axes):
        limits = score_range(study)
        count = 0
        for state, marker, colour, size in reversed(STATES):
            trials = [trial for trial in study.in_state(state) if name in trial.params]
            scores = np.clip([trial.score or 0.0 for trial in trials], *limits)
            style = {"color": COLOURS[colour], "markersize": size * 0.85, "alpha": 0.75, "clip_on": False}
            if scale.labels:
                axes.plot(scores, _strip(scale, trials), marker, **style)
            else:
                axes.plot([float(trial.params[name]) for trial in trials], scores, marker, **style)
            count += len(trials)
        (_label_strips if scale.labels else _label_range)(axes, scale, limits, score_title(study))
        return to_svg(figure, f"score against {name}, {count} trials")


def _strip(scale: Scale, trials: Sequence[Trial]) -> list[float]:
    """Rows of categories, the first on top; spread so that equal scores do not hide each other."""
    spread = np.random.default_rng(0).uniform(-JITTER, JITTER, len(trials))
    rows = [scale.labels.index(shown_choice(trial.params[scale.name])) for trial in trials]
    return [row + float(shift) for row, shift in zip(rows, spread, strict=True)]


def _label_strips(axes: Axes, scale: Scale, limits: tuple[float, float], title: str) -> None:
    axes.set_yticks(range(len(scale.labels)), [short(words(label), 16) for label in scale.labels])
    axes.set_ylim(len(scale.labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(*limits)
    axes.set_xlabel(title)


def _label_range(axes: Axes, scale: Scale, limits: tuple[float, float], title: str) -> None:
    if scale.is_log:
        log_axis(axes)
    axes.set_ylim(*limits)
    axes.set_xlabel(short(words(scale.name), 40) + (" (log)" if scale.is_log else ""))
    axes.set_ylabel(title.replace(" on ", "\non "))
