"""The sweep as the command line and the demo run it: trials, final models, the page, what to open next."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from isoformer.console import Output
from isoformer.settings import Settings

if TYPE_CHECKING:
    from isoformer.sweep import SweepResult, TrialRow
    from isoformer.sweep.control import Request
    from isoformer.sweep.finals import FinalRun

ROWS_SHOWN = 5


def run_sweep(settings: Settings, out: Output, *, resume: bool = False) -> dict[str, Any]:
    """Search, with a bar of finished trials; then the final models where `sweep.final` asks for some, and the
    page. Ray must be connected.
    """
    from isoformer.sweep import sweep

    config = settings.sweep_config()
    done: list[TrialRow] = []
    with out.progress("sweep") as advance:

        def told(trial: TrialRow) -> None:
            done.append(trial)
            best = max(
                (row.value for row in done if row.state == "complete" and row.value is not None), default=None
            )
            advance(len(done), config.trials, "trials" if best is None else f"trials, best {best:.3f}")

        result = sweep(
            config,
            settings.train,
            settings.root,
            tracking=settings.tracking,
            resume=resume,
            progress=told,
            supply=None if not config.embed else _supply(settings),
        )
    _show_sweep(result, out)
    found = result.to_json()
    if result.status in ("paused", "cancelled"):
        out.say(f"  {result.status}; to go on: the same command with --resume")
    elif config.final.top:
        found["finals"] = _finals(settings, out, result)
    _show_where(settings, result, out)
    return found


def ask_sweep(settings: Settings, out: Output, request: Request) -> None:
    """Pause, stop or cancel the sweep of `sweep.study` under the root, wherever it runs."""
    from isoformer.storage import open_storage
    from isoformer.sweep.control import ask_for

    ask_for(open_storage(settings.root), settings.sweep.study, request)
    out.say(f"asked study {settings.sweep.study!r} to {request}; its driver looks every other second")
    out.result({"study": settings.sweep.study, "request": request})


def _finals(settings: Settings, out: Output, result: SweepResult) -> dict[str, Any]:
    """Fit the best trials anew, score them on the test genes, register the best where asked for."""
    from isoformer.sweep.finals import final_runs, fit_finals, score_finals

    config = settings.sweep_config()
    runs = final_runs(result, config)
    with out.progress("final models") as advance:
        fit_finals(
            runs, config, settings.root, done=lambda done, all_, run: advance(done, all_, f"fits, {run}")
        )
    with out.progress("test genes") as advance:
        found = score_finals(
            runs,
            result,
            settings.root,
            draws=settings.evaluate.draws,
            done=lambda done, all_, run: advance(done, all_, run),
        )
    _show_finals(found, out)
    _track_finals(settings, found, runs, result)
    if config.final.register_as is not None:
        name = best_final(found)
        address = _register(settings, name, config.final.register_as)
        out.say(f"  {name} is {address}, and models:/{config.final.register_as}@best")
        found["registered"] = address
    return found


def best_final(found: dict[str, Any]) -> str:
    """The run with the highest validation score of the model whose mean validation score is the highest:
    test scores choose nothing.
    """

    def score(run: dict[str, Any]) -> float:
        return float(run["val"]["val_r2"])

    model = max(found["models"], key=lambda one: sum(map(score, one["runs"])) / len(one["runs"]))
    return str(max(model["runs"], key=score)["run"])


def _register(settings: Settings, run: str, name: str) -> str:
    from isoformer.predict.pyfunc import log_model
    from isoformer.sequence_model import SequenceModel

    model = SequenceModel.from_run(settings.root, run)
    tracking = settings.tracking.for_root(settings.root)
    return log_model(model, tracking=tracking, registered_name=name, alias="best", with_weights=False)


def _track_finals(
    settings: Settings, found: dict[str, Any], runs: list[FinalRun], result: SweepResult
) -> None:
    """A child run of the sweep's for each final run, with its scores."""
    from isoformer.config import to_yaml
    from isoformer.evaluate import read_evaluation
    from isoformer.tracking import Tracker, flat_params, log_evaluation, run_key

    configs = {run.name: run.config for run in runs}
    with Tracker(settings.tracking.for_root(settings.root)) as tracker:
        parent = str(result.about["run"])
        for model in found["models"]:
            for one in model["runs"]:
                key = run_key(settings.root, one["run"])
                tags = {"kind": "final", "trial": str(model["trial"])}
                config = configs[one["run"]]
                tracker.start_run(one["run"], key=key, parent=parent, tags=tags, params=flat_params(config))
                tracker.log_metrics(key, {n: v for n, v in one["val"].items() if v is not None})
                log_evaluation(tracker, key, read_evaluation(settings.root, one["run"]))
                tracker.log_text(key, to_yaml(config), "config.yaml")
                tracker.end_run(key)
        tracker.log_text(parent, json.dumps(found, indent=1), "finals.json")


def _supply(settings: Settings) -> Any:
    from isoformer.sweep.supply import EmbeddingSupply

    return EmbeddingSupply(settings.embed, settings.root)


def _show_sweep(result: SweepResult, out: Output) -> None:
    ranked = sorted(
        (trial for trial in result.trials if trial.value is not None and trial.state != "failed"),
        key=lambda trial: (trial.state != "complete", -(trial.value or 0.0)),
    )
    counts = ", ".join(
        f"{sum(t.state == state for t in result.trials)} {state}"
        for state in dict.fromkeys(trial.state for trial in result.trials)
    )
    out.table(
        f"Sweep: {counts} in {result.seconds:.0f} s, {result.metric} on validation genes",
        (
            "trial",
            result.metric,
            *([result.objectives[1][0]] if len(result.objectives) > 1 else []),
            "state",
            "parameters",
        ),
        [
            (
                trial.number,
                trial.value or 0.0,
                *([trial.values[1] if trial.values else ""] if len(result.objectives) > 1 else []),
                trial.state,
                _parameters(trial.params),
            )
            for trial in ranked[:ROWS_SHOWN]
        ],
    )
    failed = [trial for trial in result.trials if trial.state == "failed"]
    for trial in failed[:ROWS_SHOWN]:
        out.say(f"  trial {trial.number} failed: {trial.error.splitlines()[0]}")
    if len(failed) > ROWS_SHOWN:
        out.say(f"  and {len(failed) - ROWS_SHOWN} more failed; all errors are in the report")


def _show_finals(found: dict[str, Any], out: Output) -> None:
    def text(model: dict[str, Any], name: str) -> str:
        mean, sd = model["test_mean"][name], (model["test_sd"] or {}).get(name)
        return "undefined" if mean is None else f"{mean:.3f}" + (f" ± {sd:.3f}" if sd is not None else "")

    out.table(
        "Final models, test genes (mean ± deviation over seeds)",
        ("trial", "seeds", "R²", "Spearman", "parameters"),
        [
            (
                model["trial"],
                len(model["runs"]),
                text(model, "r2"),
                text(model, "spearman"),
                _parameters(model["params"]),
            )
            for model in found["models"]
        ],
    )


def _show_where(settings: Settings, result: SweepResult, out: Output) -> None:
    from isoformer.report.sweep_page import build_sweep_report
    from isoformer.sweep import open_study_line
    from isoformer.tracking import open_line

    page = build_sweep_report(settings.root, result.study, tracking=settings.tracking)
    out.say(f"  report: {page}")
    out.say(f"  MLflow: {open_line(settings.tracking.for_root(settings.root))}")
    out.say(f"  Optuna: {open_study_line(str(result.about['storage']))}")


def _parameters(parameters: dict[str, Any]) -> str:
    """`name=value` pairs, numbers short."""
    return " ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in parameters.items()
    )
