"""`build_sweep_report`: one static HTML page about a study, from trials.json and finals.json. No network.

`isoformer report --sweep` and the end of a sweep call it. The page lies beside the files it is made of.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isoformer.report import parameter_figures, sweep_figures
from isoformer.report.collect import finite, sweep_page_key
from isoformer.report.figures import importance_bars, metric_title
from isoformer.report.heat_map import HeatMap, heat_map
from isoformer.report.page import number, put_page, rendered, seconds
from isoformer.report.study import Parameter, Study, Trial, read_study
from isoformer.report.study_facts import both, pareto_front, shown_choice, variants
from isoformer.report.sweep_figures import TOP, words
from isoformer.storage import open_storage
from isoformer.sweep.study import open_study_line
from isoformer.tracking import TrackingConfig, local_path, open_line, run_links

TRIALS_SHOWN = 1000
ERRORS_SHOWN = 100
ERROR_LETTERS = 600
NUMBERS = (("seconds", "seconds"), ("device_seconds", "device-seconds"), ("parameters", "parameters"))
SECTIONS = (
    ("found", "Found"), ("history", "Trials in order"), ("parameters", "Parameters"),
    ("front", "Pareto front"), ("tissues", "Tissues"), ("curves", "Curves"), ("finals", "Final models"),
    ("trials", "All trials"), ("open", "Look further"),
)  # fmt: skip


def build_sweep_report(
    root: str, study: str, out: Path | None = None, *, tracking: TrackingConfig | None = None
) -> Path:
    """Write the page and return where it is. `out` null: `<root>/studies/<study>/report.html`; for a bucket
    that key, and a copy here, `sweep-<study>.html`.

    StorageError where there is no such study, or it cannot be read, or the page cannot be written.
    """
    found = read_study(open_storage(root), study)
    page = render(found, root, (tracking or TrackingConfig()).for_root(root))
    return put_page(page, root, sweep_page_key(study), out, copy=f"sweep-{study}.html")


def render(study: Study, root: str, tracking: TrackingConfig) -> str:
    """The page as text."""
    divisor, unit = sweep_figures.cost_unit(study)
    is_two = len(study.targets) > 1
    return rendered(
        "sweep.html",
        {"choice": shown_choice, "whole": _whole, "run_name": _run_name},
        study=study,
        root=root,
        title=f"Sweep {study.study}",
        sections=[section for section in SECTIONS if is_two or section[0] != "front"],
        labels=study.dataset.get("label_provenance", ""),
        metric=metric_title(study.targets[0].name),
        goals=_goals(study),
        searched=[(name, *_searched(one)) for name, one in study.space.items()],
        states=_states(study.trials),
        spent=_spent(study),
        ended_by={"trials": "trials", "hours": "hours", "device_hours": "device-hours"}.get(
            study.budget_used
        ),
        best=study.best_trial,
        variants=variants(study),
        divisor=divisor,
        unit=unit,
        cut=sweep_figures.cut_off(study),
        top=min(TOP, len(study.ranked())),
        tissues=_tissues(study),
        objectives_of=lambda trial: _objectives(study, trial),
        raw_objectives=lambda trial: _raw_objectives(study, trial),
        mlflow_line=open_line(tracking),
        study_line=_study_line(study, root),
        **_figures(study),
        **_front(study),
        **_table(study, tracking),
    )


def _figures(study: Study) -> dict[str, Any]:
    faint = sweep_figures.faint_curves(study)
    pruned = [trial for trial in study.trials if trial.state == "pruned" and sweep_figures.points(trial)]
    return {
        "figures": {
            "history": sweep_figures.history(study),
            "cost": sweep_figures.cost(study),
            "importances": importance_bars(study.importances),
            "parallel": parameter_figures.parallel_coordinates(study),
            "pareto": sweep_figures.pareto(study),
            "curves": sweep_figures.learning_curves(study),
            "finals_r2": sweep_figures.final_seeds(study.finals, "r2"),
            "finals_spearman": sweep_figures.final_seeds(study.finals, "spearman"),
        },
        "parallel_width": 110 * (len(study.parameters) + 1),
        "slices": parameter_figures.slices(study),
        "best_curves": len(sweep_figures.best_curves(study)),
        "faint": len(faint),
        "faint_left_out": len(pruned) - len(faint),
    }


def _front(study: Study) -> dict[str, Any]:
    front = pareto_front(study)
    numbers = {trial.number for trial in front}
    scores = [pair[0] for trial in study.trials if (pair := both(trial))]
    return {
        "front": front,
        "front_cut": sweep_figures.cut_off(study, scores),
        "front_differs": bool(study.front) and set(study.front) != numbers,
    }


def _table(study: Study, tracking: TrackingConfig) -> dict[str, Any]:
    """Best first, then what has no score; addresses of their MLflow runs; failures with their errors."""
    ranked = study.ranked()
    numbers = {trial.number for trial in ranked}
    rest = sorted((t for t in study.trials if t.number not in numbers), key=lambda t: t.number)
    shown = [*ranked, *rest][:TRIALS_SHOWN]
    objectives = {objective.name for objective in study.targets}
    links = run_links(tracking, [trial.run for trial in shown if trial.run])
    return {
        "shown": shown,
        "numbers": [column for column in NUMBERS if column[0] not in objectives],
        "left_out": len(study.trials) - len(shown),
        "links": {key: url for key, url in links.items() if url.startswith(("http://", "https://"))},
        **_failures(study),
    }


def _failures(study: Study) -> dict[str, Any]:
    """Errors with the trials that met them, the commonest first."""
    errors: dict[str, list[int]] = {}
    for trial in study.trials:
        if trial.state == "failed":
            errors.setdefault(trial.error or "no error was recorded", []).append(trial.number)
    by_count = sorted(errors.items(), key=lambda item: (-len(item[1]), item[1]))
    return {
        "failed": [(_trials(numbers), _shortened(error)) for error, numbers in by_count[:ERRORS_SHOWN]],
        "failed_left_out": sum(len(numbers) for _, numbers in by_count[ERRORS_SHOWN:]),
    }


def _trials(numbers: Sequence[int]) -> str:
    return f"{'trials' if len(numbers) > 1 else 'trial'} {', '.join(map(str, numbers))}"


def _tissues(study: Study) -> HeatMap | None:
    top = [trial for trial in study.ranked() if trial.tissues][:TOP]
    rows = {f"trial {trial.number}": trial.tissues for trial in top}
    return heat_map(rows, title=f"R² in each tissue of the best {len(top)} trials", name="heat-tissues")


def _goals(study: Study) -> str:
    parts = []
    for objective in study.targets:
        which = (
            "the highest"
            if objective.sign > 0
            else "the fewest"
            if _is_count(objective.name)
            else "the lowest"
        )
        place = " on the validation genes" if objective.name.startswith("val_") else ""
        parts.append(f"{which} {words(metric_title(objective.name))}{place}")
    return " and ".join(parts)


def _is_count(name: str) -> bool:
    return name in ("parameters", "seconds", "device_seconds", "epochs")


def _searched(one: Parameter) -> tuple[str, str]:
    """A parameter's values and its condition, in words."""
    if one.labels or one.choices:
        values = ", ".join(map(shown_choice, one.labels or one.choices))
    else:
        values = (
            f"{one.low:g} to {one.high:g}" if one.low is not None and one.high is not None else "not known"
        )
        values += ", by logarithm" if one.log else ""
    conditions = []
    for name, wanted in one.when.items():
        listed = wanted if isinstance(wanted, list | tuple) else [wanted]
        conditions.append(f"{name} is {' or '.join(map(shown_choice, listed))}")
    return values, " and ".join(conditions)


def _states(trials: Sequence[Trial]) -> str:
    counts = Counter(trial.state for trial in trials)
    return ", ".join(f"{count} {state}" for state, count in counts.most_common()) or "none"


def _spent(study: Study) -> list[tuple[str, str]]:
    """What was used of the budget, as far as it is known."""
    budget: Mapping[str, float | None] = study.budget
    facts = []
    if study.device_hours is not None:
        limit = budget.get("device_hours")
        facts.append((f"{study.device_hours:.2f}", f"device-hours{f' of {limit:g}' if limit else ''}"))
    if study.seconds is not None:
        limit = budget.get("hours")
        facts.append((seconds(study.seconds), f"on the clock{f' of {limit:g} h' if limit else ''}"))
    return facts


def _objectives(study: Study, trial: Trial) -> list[tuple[str, str]]:
    """Each objective as it is shown, with its name."""
    return [
        (shown, one.name)
        for (shown, _), one in zip(_raw_objectives(study, trial), study.targets, strict=True)
    ]


def _raw_objectives(study: Study, trial: Trial) -> list[tuple[str, float | None]]:
    """Each objective as it is shown, and as it is."""
    values = list(trial.values or (trial.value,))
    values += [None] * (len(study.targets) - len(values))
    shown = []
    for objective, value in zip(study.targets, values, strict=False):
        if value is None and objective.name in dict(NUMBERS):  # known of trials that were pruned, too
            value = getattr(trial, objective.name)
        text = _whole(value) if objective.name == "parameters" else number(value)
        shown.append((text, value if finite(value) else None))
    return shown


def _study_line(study: Study, root: str) -> str:
    if study.storage:
        return f"optuna-dashboard {shlex.quote(study.storage)}"
    folder = local_path(root)
    return open_study_line(folder / "studies" / study.study / "study.db") if folder else ""


def _shortened(error: str) -> str:
    left_out = len(error) - ERROR_LETTERS
    return error if left_out <= 0 else f"{error[:ERROR_LETTERS]}… ({left_out} more letters in trials.json)"


def _whole(value: float | None) -> str:
    return "–" if value is None or not finite(value) else f"{value:,.0f}"


def _run_name(key: str) -> str:
    return key if len(key) <= 16 else f"{key[:8]}…"
