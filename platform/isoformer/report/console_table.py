"""A score table for the terminal, as the demo and `isoformer evaluate` print it at their end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from isoformer.scores import Score, ScoreRow, ScoreTable

if TYPE_CHECKING:
    from rich.console import Console

    from isoformer.evaluate import Detail


def print_table(table: ScoreTable, console: Console, *, title: str = "Scores") -> None:
    """R², Spearman and Pearson with intervals a row; below it protocol, labels and encoders."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=title, title_justify="left", title_style="bold", box=None)
    for column in ("from", "method", "weights"):
        shown.add_column(column, overflow="fold", min_width=11)
    for column in ("R²", "Spearman", "Pearson"):
        shown.add_column(f"{column} [95%]", justify="right", no_wrap=True)
    for row in table.rows:
        cells = [row.name, row.method, row.trained]
        cells += [score_text(score) for score in (row.r2, row.spearman, row.pearson)]
        shown.add_row(*(Text(cell) for cell in cells))
    console.print(shown)
    _print_footer(table, console)


def print_details(details: Sequence[Detail], console: Console) -> None:
    """Within genes, within transcripts, and over all values at once."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(
        title="What the mean over tissues hides", title_justify="left", title_style="bold", box=None
    )
    for column in ("from", "method"):
        shown.add_column(column, overflow="fold", min_width=11)
    titles = (
        "pooled R²",
        "isoform order",
        "top isoform",
        "isoform share",
        "tissue profile",
        "tau",
        "top tissue",
    )
    for column in titles:
        shown.add_column(column, justify="right")
    for one in details:
        isoforms, specificity = one.isoforms, one.specificity
        values = (
            one.pooled["r2"], isoforms.concordance.value, isoforms.top1.value, isoforms.share.value,
            specificity.profile.value, specificity.tau, specificity.top_tissue,
        )  # fmt: skip
        cells = ["" if value is None else f"{value:.3f}" for value in values]
        shown.add_row(one.name, one.method, *(Text(cell) for cell in cells))
    console.print(shown)
    first = details[0]
    chances = [
        f"isoforms: {first.isoforms.genes} genes with several, {first.isoforms.pairs} pairs",
        f"chance of order 0.500, of top {_or_none(first.isoforms.top1_chance)}",
        f"always the commonest tissue: {_or_none(first.specificity.top_tissue_commonest)}",
    ]
    console.print(Text("; ".join(chances)))


def _or_none(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def print_ablation(table: ScoreTable, console: Console, *, title: str) -> None:
    """The ablation folded: a row a subset of modalities, a column a method and its kind of weights."""
    from rich.table import Table
    from rich.text import Text

    columns = list(dict.fromkeys((row.method, row.trained) for row in table.rows if row.modalities))
    shown = Table(title=title, title_justify="left", title_style="bold", box=None)
    shown.add_column("R² / Spearman from")
    for method, trained in [("ridge_baseline", "no encoder"), *columns]:
        shown.add_column(f"{method}\n{trained}", justify="right", no_wrap=True)
    for name in dict.fromkeys(row.name for row in table.rows):
        rows = {(row.method, row.trained): row for row in table.rows if row.name == name}
        cells = [rows.get(column) for column in [("ridge_baseline", "none"), *columns]]
        shown.add_row(name, *(Text(_pair(row) if row else "") for row in cells))
    console.print(shown)
    _print_footer(table, console)


def score_text(score: Score) -> str:
    """`0.312 ± 0.05 [0.25, 0.37]`, and what is undefined said so."""
    if score.value is None:
        return "undefined"
    spread = f" ± {score.sd:.2f}" if score.sd is not None else ""
    if score.low is None or score.high is None:
        return f"{score.value:.3f}{spread}"
    return f"{score.value:.3f}{spread} [{score.low:.2f}, {score.high:.2f}]"


def _print_footer(table: ScoreTable, console: Console) -> None:
    from rich.text import Text

    labels = "; ".join(dict.fromkeys(row.label_provenance for row in table.rows))
    size = (
        f"{table.rows[0].transcripts} transcripts of {table.rows[0].genes} genes" if table.rows else "no rows"
    )
    console.print(Text(f"  {table.protocol}; {size}; target {table.target_unit}"), soft_wrap=True)
    console.print(Text(f"  labels: {labels}"))
    encoders = dict.fromkeys(name for row in table.rows for name in row.encoders.values())
    console.print(Text(f"  encoders: {', '.join(encoders) or 'none'}"))


def _pair(row: ScoreRow) -> str:
    values = (row.r2.value, row.spearman.value)
    return " / ".join("undefined" if value is None else f"{value:.3f}" for value in values)
