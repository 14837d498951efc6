"""`build_report`: one static HTML page from what the stages left under a root. No network, no script."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from isoformer.config import to_yaml
from isoformer.isoform_metrics import Measure
from isoformer.report import figures
from isoformer.report.collect import Found, collect, finite, sweep_page_key
from isoformer.report.page import number, put_page, rendered, seconds
from isoformer.scores import Score
from isoformer.sweep.study import open_study_line
from isoformer.tracking import TrackingConfig, local_path, open_line

TRIALS_SHOWN = 60
SECTIONS = (
    ("scores", "Scores"), ("tissues", "Tissues"), ("ablation", "Modalities"), ("training", "Training"),
    ("sweep", "Sweep"), ("data", "Data"), ("encoders", "Encoders"), ("open", "Look further"),
)  # fmt: skip
LOSSES = {"train_loss": "train", "val_loss": "validation"}
VALIDATION = {"val_r2": "R²", "val_spearman": "Spearman"}


def build_report(
    root: str,
    out: Path | None = None,
    *,
    run: str | None = None,
    study: str | None = None,
    tracking: TrackingConfig | None = None,
) -> Path:
    """Write the page and return where it is. `out` null: `<root>/reports/<run>.html`, for a bucket with a
    copy here.

    Parts that are not there are stated as missing. StorageError where the root or the file cannot be reached.
    """
    found = collect(root, run=run, study=study)
    name = f"{found.run or 'report'}.html"
    folder = local_path(root)
    place = out or (folder / "reports" / name if folder else Path(name))
    page = render(found, (tracking or TrackingConfig()).for_root(root), place)
    return put_page(page, root, f"reports/{name}", out, copy=name)


def render(found: Found, tracking: TrackingConfig, path: Path) -> str:
    """The page as text, with what it links to as seen from where it will lie."""
    filters = {
        "mean": _mean,
        "bounds": _bounds,
        "provenance": lambda table: "; ".join(dict.fromkeys(row.label_provenance for row in table.rows)),
        "short": lambda score: number(score.value),
        "interval": _interval,
        "parameter": lambda value: f"{value:.3g}" if isinstance(value, float) else value,
    }
    evaluation = found.evaluation
    return rendered(
        "report.html",
        filters,
        found=found,
        title="IsoFormer: transcript expression in human tissues",
        sections=SECTIONS,
        labels=_labels(found),
        baseline=figures.best_baseline(evaluation.table) if evaluation else None,
        figures=_figures(found),
        tissues=_tissues(found),
        config_text=to_yaml(found.settings) if found.settings else "",
        planned_actual=_planned_actual(found.embed_report),
        mlflow_line=open_line(tracking),
        study_line=_study_line(found),
        sweep_page=_sweep_page(found, path),
        **_sweep(found.sweep),
    )


def _labels(found: Found) -> str:
    """What the labels are, in words; the scores' own word first."""
    if found.evaluation and found.evaluation.table.rows:
        return found.evaluation.table.rows[0].label_provenance
    return found.manifest.label_provenance if found.manifest else ""


def _figures(found: Found) -> dict[str, Any]:
    best_epoch = found.summary["best_epoch"] if found.summary else None
    ablation, sweep = found.ablation, found.sweep
    return {
        "tissues": figures.tissue_bars(found.evaluation, found.tissue_intervals)
        if found.evaluation
        else None,
        "ablation_r2": figures.score_dots(ablation, "r2", "R²") if ablation else None,
        "ablation_spearman": figures.score_dots(ablation, "spearman", "Spearman") if ablation else None,
        "loss": figures.curves(found.history, LOSSES, best_epoch),
        "validation": figures.curves(found.history, VALIDATION, best_epoch),
        "history": figures.sweep_history(sweep) if sweep else None,
        "importances": figures.importance_bars(sweep["importances"]) if sweep else None,
    }


def _tissues(found: Found) -> list[dict[str, Any]]:
    if found.evaluation is None:
        return []
    model = found.evaluation.table.rows[0]
    rows = [s for s in found.evaluation.per_tissue if (s.name, s.method) == (model.name, model.method)]
    shown = []
    for row in rows:
        interval = found.tissue_intervals.get(row.tissue, {}).get("r2")
        has_interval = interval is not None and finite(interval.low)
        text = f"[{interval.low:.3f}, {interval.high:.3f}]" if interval and has_interval else "–"
        shown.append({**row.model_dump(), "interval": text})
    return shown


def _sweep(sweep: Mapping[str, Any] | None) -> dict[str, Any]:
    if sweep is None:
        return {
            "trials": [],
            "parameters": [],
            "failed": [],
            "states": "",
            "metric": "",
            "trials_left_out": 0,
        }
    best_first = sorted(
        sweep["trials"], key=lambda t: (t["state"] != "complete", -(t["value"] or -1e9), t["number"])
    )
    counts = Counter(trial["state"] for trial in sweep["trials"])
    return {
        "trials": best_first[:TRIALS_SHOWN],
        "trials_left_out": max(0, len(best_first) - TRIALS_SHOWN),
        "parameters": list(sweep["space"]),
        "failed": [trial for trial in sweep["trials"] if trial["state"] == "failed"],
        "states": ", ".join(f"{count} {state}" for state, count in counts.most_common()),
        "metric": figures.metric_title(sweep["metric"]),
    }


def _planned_actual(report: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    if report is None:
        return []
    pairs = [
        ("tokens", f"{report['predicted_tokens']:,}", f"{report['tokens']:,}"),
        ("MB written", f"{report['predicted_bytes'] / 1e6:,.1f}", f"{report['bytes_written'] / 1e6:,.1f}"),
        ("time, start-up apart", seconds(report["predicted_seconds"]), seconds(report["actual_seconds"])),
        ("start-up", "–", seconds(report["startup_seconds"])),
    ]
    return pairs


def _study_line(found: Found) -> str:
    folder = local_path(found.root)
    if found.sweep is None or folder is None:
        return ""
    return open_study_line(folder / "studies" / str(found.study) / "study.db")


def _sweep_page(found: Found, path: Path) -> str:
    """The address of the study's own page where there is one and it is a file, as this one is."""
    folder = local_path(found.root)
    if not found.sweep_page or folder is None or found.study is None:
        return ""
    return quote(
        Path(os.path.relpath(folder / sweep_page_key(found.study), path.resolve().parent)).as_posix()
    )


def _mean(score: Score) -> str:
    if score.value is None:
        return f"undefined ({score.undefined_tissues} tissues)"
    return number(score.value) + (f" ± {score.sd:.3f}" if score.sd is not None else "")


def _bounds(score: Score | Measure) -> str:
    return "" if score.low is None or score.high is None else f"[{score.low:.3f}, {score.high:.3f}]"


def _interval(score: Score) -> str:
    if score.low is None or score.high is None:
        return "no interval"
    return f"95% interval over genes {score.low:.3f} to {score.high:.3f}"
