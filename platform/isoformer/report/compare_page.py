"""`build_compare_report`: one static HTML page that sets runs side by side. No network, no script."""

from __future__ import annotations

import hashlib
from pathlib import Path

from isoformer.report import compare_figures
from isoformer.report.comparison import Comparison
from isoformer.report.heat_map import heat_map
from isoformer.report.page import put_page, rendered
from isoformer.scores import Score
from isoformer.tracking import TrackingConfig, open_line, run_key, run_links

FILE_LETTERS = 80
SECTIONS = (
    ("runs", "Runs"), ("scores", "Scores"), ("configuration", "Configuration"), ("curves", "Curves"),
    ("tissues", "Tissues"), ("open", "Look further"),
)  # fmt: skip


def build_compare_report(
    root: str, compared: Comparison, out: Path | None = None, *, tracking: TrackingConfig | None = None
) -> Path:
    """Write the page and return where it is. `out` null: `<root>/reports/compare-<run>-<run>….html`, for a
    bucket with a copy here. StorageError where it cannot be written.
    """
    name = file_name([run.name for run in compared.runs])
    page = render(compared, root, (tracking or TrackingConfig()).for_root(root))
    return put_page(page, root, f"reports/{name}", out, copy=name)


def file_name(runs: list[str]) -> str:
    """`compare-a-b.html`; many or long names give way to their number and a digest, so no two collide."""
    joined = "-".join(runs)
    if len(joined) > FILE_LETTERS:
        digest = hashlib.blake2b(" ".join(runs).encode(), digest_size=4).hexdigest()
        joined = f"{runs[0][: FILE_LETTERS // 2]}-and-{len(runs) - 1}-more-{digest}"
    return f"compare-{joined}.html"


def render(compared: Comparison, root: str, tracking: TrackingConfig) -> str:
    """The page as text."""
    tissues = {run.name: run.tissues for run in compared.runs if run.tissues}
    differences = compared.differences()
    return rendered(
        "compare.html",
        {"bounds": _bounds},
        compared=compared,
        first=compared.runs[0],
        root=root,
        title=f"{len(compared.runs)} runs compared",
        sections=SECTIONS,
        labels=list(dict.fromkeys(run.settings.label_provenance for run in compared.runs)),
        unevaluated=[run.name for run in compared.runs if run.evaluation is None],
        tissues=heat_map(tissues, title="R² in each tissue", name="heat-runs") if tissues else None,
        differences=heat_map(
            differences, title="difference in R² in each tissue", name="heat-differences", is_difference=True
        ) if differences else None,
        links=_links(compared, root, tracking),
        mlflow_line=open_line(tracking),
        figures={
            "r2": compare_figures.scores(compared, "r2"),
            "spearman": compare_figures.scores(compared, "spearman"),
            "val_r2": compare_figures.curves(compared, "val_r2", "R² on validation genes"),
            "val_loss": compare_figures.curves(compared, "val_loss", "loss on validation genes"),
        },
    )  # fmt: skip


def _links(compared: Comparison, root: str, tracking: TrackingConfig) -> dict[str, str]:
    """Run -> its page in MLflow, of those that it knows."""
    keys = {run_key(root, run.name): run.name for run in compared.runs}
    found = run_links(tracking, list(keys))
    return {keys[key]: url for key, url in found.items() if url.startswith(("http://", "https://"))}


def _bounds(score: Score) -> str:
    return "" if score.low is None or score.high is None else f"[{score.low:.3f}, {score.high:.3f}]"
