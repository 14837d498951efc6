"""Figures of a sweep as a whole: trials in order, against cost, the Pareto front, curves, final models.

Each takes a `Study` and returns inline SVG, or None where there is nothing to draw. Scores so bad that they
would flatten all others are drawn at the edge of the axis; `cut_off` counts them for the caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from isoformer.report.collect import finite
from isoformer.report.figures import ROW_INCHES, metric_title
from isoformer.report.study import FinalModel, Study, Trial
from isoformer.report.study_facts import best_against_cost, best_so_far, both, pareto_front, variants
from isoformer.report.svg import COLOURS, Axes, canvas, legend_above, log_axis, series_style, to_svg

TOP = 10
CURVES_SHOWN = 200
"""Faint curves beside the best ones."""
CURVES_IN_COLOUR = 5
NARROW_INCHES = 4.4
HOUR_SECONDS = 3600.0
STATES = (("complete", "o", "accent", 4.0), ("pruned", "x", "muted", 3.5))


def score_range(study: Study, scores: Sequence[float] | None = None) -> tuple[float, float]:
    """From the worst to the best score with a margin; far outliers on the bad side are left out."""
    better = study.sign * np.asarray(all_scores(study) if scores is None else scores, dtype=np.float64)
    low, middle, high = np.quantile(better, (0.25, 0.5, 1.0))
    fence = low - 3 * max(high - middle, middle - low)
    floor = better[better >= fence].min()
    margin = 0.05 * (high - floor) or 0.01
    ends = sorted((study.sign * (floor - margin), study.sign * (high + margin)))
    return float(ends[0]), float(ends[1])


def cut_off(study: Study, scores: Sequence[float] | None = None) -> int:
    """How many scores `score_range` leaves out."""
    scores = all_scores(study) if scores is None else scores
    if not scores:
        return 0
    low, high = score_range(study, scores)
    return sum(not low <= score <= high for score in scores)


def all_scores(study: Study) -> list[float]:
    """Of the trials that the figures draw."""
    drawn = (trial for state, *_ in STATES for trial in study.in_state(state))
    return [trial.score for trial in drawn if trial.score is not None]


def score_title(study: Study) -> str:
    """The first objective as an axis names it."""
    title = metric_title(study.targets[0].name)
    return f"{title} on validation genes" if study.targets[0].name.startswith("val_") else words(title)


def words(name: str) -> str:
    return name.replace("_", " ")


def history(study: Study) -> Markup | None:
    """Every trial's score in the order of the trials, by state, and the best completed one so far."""
    if not all_scores(study):
        return None
    with canvas(3.0, "history", width_inches=NARROW_INCHES) as (figure, axes):
        limits = score_range(study)
        for state, marker, colour, size in STATES:
            trials = study.in_state(state)
            if trials:
                scores = np.clip([trial.score or 0.0 for trial in trials], *limits)
                style = {"color": COLOURS[colour], "markersize": size, "label": state, "clip_on": False}
                axes.plot([trial.number for trial in trials], scores, marker, **style)
        _mark_failed(axes, study)
        if line := best_so_far(study):
            _steps(axes, line, {"color": COLOURS["second"], "label": "best so far"})
        axes.set_ylim(*limits)
        axes.set_xlabel("trial")
        axes.set_ylabel(score_title(study))
        axes.xaxis.get_major_locator().set_params(integer=True)
        legend_above(axes, columns=2)
        return to_svg(figure, f"scores of {len(study.trials)} trials in order")


def _mark_failed(axes: Axes, study: Study) -> None:
    failed = [trial.number for trial in study.trials if trial.state == "failed"]
    if failed:
        style = {"color": COLOURS["bad"], "markersize": 6.0, "label": "failed", "clip_on": False}
        axes.plot(failed, [0.0] * len(failed), "|", transform=axes.get_xaxis_transform(), **style)


def _steps(axes: Axes, line: Sequence[tuple[float, float]], style: dict[str, Any]) -> None:
    axes.step(*zip(*line, strict=True), **{"where": "post", "linewidth": 1.5, **style})


def cost(study: Study) -> Markup | None:
    """The best score so far against what was spent by then; a line a variant where variants compete."""
    groups = {one.name: list(one.trials) for one in variants(study)} or {"best so far": list(study.trials)}
    lines = {name: best_against_cost(study, trials) for name, trials in groups.items()}
    lines = {name: line for name, line in lines.items() if line and line[-1][0] > 0}
    if not lines:
        return None
    divisor, unit = cost_unit(study)
    with canvas(3.1, "cost", width_inches=NARROW_INCHES) as (figure, axes):
        for index, (name, line) in enumerate(lines.items()):
            style = series_style(index) | {"label": short(words(name)), "markersize": 3.5, "markevery": [-1]}
            _steps(axes, [(spent / divisor, best) for spent, best in line], style)
        bests = [best for line in lines.values() for _, best in line]
        axes.set_ylim(*score_range(study, bests))
        axes.set_xlabel(f"{unit} spent" + (" on a variant" if study.variants else ""))
        axes.set_ylabel(f"best {score_title(study)}")
        legend_above(axes, columns=2)
        return to_svg(figure, f"best score against {unit}: {', '.join(lines)}")


def cost_unit(study: Study) -> tuple[float, str]:
    """Seconds of the axis' unit, and its name."""
    what = "device" if any(trial.device_seconds is not None for trial in study.trials) else "trial"
    total = sum(trial.cost_seconds for trial in study.trials)
    return (HOUR_SECONDS, f"{what}-hours") if total > 2 * HOUR_SECONDS else (1.0, f"{what}-seconds")


def pareto(study: Study) -> Markup | None:
    """Both objectives of all completed trials; those on the front are joined."""
    pairs = [pair for trial in study.trials if (pair := both(trial))]
    front = [pair for trial in pareto_front(study) if (pair := both(trial))]
    if not pairs or not front:
        return None
    with canvas(3.1, "pareto", width_inches=NARROW_INCHES) as (figure, axes):
        limits = score_range(study, [score for score, _ in pairs])
        clipped = [(other, float(np.clip(score, *limits))) for score, other in pairs]
        style: dict[str, Any] = {"color": COLOURS["accent"], "markersize": 4.0, "alpha": 0.55}
        axes.plot(*zip(*clipped, strict=True), "o", label="completed trials", **style)
        ends = sorted((other, score) for score, other in front)
        style = {"color": COLOURS["second"], "markersize": 5.5, "linewidth": 1.4, "linestyle": (0, (4, 2))}
        axes.plot(*zip(*ends, strict=True), marker="D", label="front", **style)
        second = study.targets[1]
        if min(other for _, other in pairs) > 0 and max(o for _, o in pairs) > 20 * min(o for _, o in pairs):
            log_axis(axes)
        axes.set_xlabel(words(second.name) + (", less is better" if second.sign < 0 else ""))
        axes.set_ylabel(score_title(study))
        axes.set_ylim(*limits)
        legend_above(axes)
        return to_svg(figure, f"{len(front)} of {len(pairs)} completed trials are on the Pareto front")


def learning_curves(study: Study) -> Markup | None:
    """Score over epochs: the best trials in colours, pruned ones faint."""
    top = best_curves(study)
    faint = faint_curves(study)
    if not top and not faint:
        return None
    with canvas(3.2, "curves", width_inches=NARROW_INCHES) as (figure, axes):
        for place, trial in enumerate(faint):
            style: dict[str, Any] = {"color": COLOURS["muted"], "linewidth": 0.8, "alpha": 0.4}
            axes.plot(*zip(*points(trial), strict=True), label="" if place else "pruned", **style)
        for index, trial in enumerate(top):
            line = points(trial)
            style = series_style(index) | {"linewidth": 1.6, "markersize": 4.0, "markevery": [-1]}
            axes.plot(*zip(*line, strict=True), label=f"trial {trial.number}", **style)
        scores = [score for trial in (*top, *faint) for _, score in points(trial)]
        axes.set_ylim(*score_range(study, scores))
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel(score_title(study))
        legend_above(axes, columns=3)
        return to_svg(figure, f"learning curves of {len(top)} best and {len(faint)} pruned trials")


def best_curves(study: Study) -> list[Trial]:
    """The best trials that recorded a curve."""
    return [trial for trial in study.ranked() if points(trial)][:CURVES_IN_COLOUR]


def faint_curves(study: Study) -> list[Trial]:
    """The pruned trials whose curves are drawn: the last `CURVES_SHOWN`."""
    return [trial for trial in study.trials if trial.state == "pruned" and points(trial)][-CURVES_SHOWN:]


def points(trial: Trial) -> list[tuple[float, float]]:
    return [(epoch, score) for epoch, score in trial.curve if score is not None and finite(score)]


def final_seeds(models: Sequence[FinalModel], metric: str) -> Markup | None:
    """Each final model's scores a seed on test genes with mean ± sd; on validation genes beside them."""
    if not any(finite(run.test.get(metric)) for model in models for run in model.runs):
        return None
    labels = [f"rank {model.rank} (trial {model.trial})" for model in models]
    with canvas(len(models) * 2.2 * ROW_INCHES + 1.0, f"finals-{metric}", width_inches=NARROW_INCHES) as (
        figure,
        axes,
    ):
        for place, model in enumerate(reversed(models)):
            _seed_row(axes, place, model, metric, is_first=place == 0)
        axes.set_yticks(range(len(models)), labels[::-1])
        axes.set_ylim(-0.6, len(models) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(metric_title(metric))
        legend_above(axes, columns=2)
        return to_svg(figure, f"{metric_title(metric)} of {len(models)} final models by seed")


def _seed_row(axes: Axes, place: int, model: FinalModel, metric: str, *, is_first: bool) -> None:
    test = [run.test[metric] for run in model.runs if finite(run.test.get(metric))]
    validation = [run.val[f"val_{metric}"] for run in model.runs if finite(run.val.get(f"val_{metric}"))]
    mean, sd = model.test_mean.get(metric), model.test_sd.get(metric)
    if mean is not None and finite(mean):
        half = sd if sd is not None and finite(sd) else 0.0
        style: dict[str, Any] = {"color": COLOURS["accent"], "label": "test, mean ± sd" if is_first else ""}
        axes.errorbar([mean], [place - 0.16], xerr=[half], fmt="|", capsize=4, markersize=9, **style)
    style = {"color": COLOURS["accent"], "markersize": 4.0, "alpha": 0.8}
    axes.plot(test, [place] * len(test), "o", label="test, a seed" if is_first else "", **style)
    style = {"color": COLOURS["second"], "markersize": 3.6, "alpha": 0.8}
    label = "validation, a seed" if is_first else ""
    axes.plot(validation, [place + 0.18] * len(validation), "D", label=label, **style)


def short(text: str, letters: int = 24) -> str:
    """For a figure, where a long name would push out the drawing."""
    return text if len(text) <= letters else f"{text[: letters - 1]}…"
