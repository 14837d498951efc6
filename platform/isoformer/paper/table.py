"""A table of the paper with our rows beside its own: shown as CSV, Markdown or one HTML page.

Every row says on which labels, with which encoders and with which weights its numbers were made.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict

from isoformer.paper.results import PaperResult
from isoformer.scores import WITHIN, Score, ScoreRow

if TYPE_CHECKING:
    from rich.console import Console

TEMPLATE: Final = Path(__file__).with_name("table.html")
COLUMNS: Final = (
    "row", "method", "encoders", "weights", "R² [95%]", "Spearman [95%]", "Pearson [95%]",
    "isoform order", "tissue profile", "paper R²", "paper Spearman", "paper's encoders",
)  # fmt: skip
_NUMERIC: Final = range(4, 11)
_TITLES: Final = {
    "modalities": "What each modality brings",
    "fusions": "How the modalities are brought together",
    "transfer": "Pre-trained encoders against the same from scratch",
    "encoders": "Which encoder and resolution",
}


class PaperRow(BaseModel):
    """Our score, and the paper's where it has one."""

    model_config = ConfigDict(frozen=True)
    score: ScoreRow
    paper: PaperResult | None


class PaperTable(BaseModel):
    """Rows on the same genes. `name`: modalities, fusions, transfer or encoders."""

    model_config = ConfigDict(frozen=True)
    name: str
    protocol: str
    transcripts: int
    genes: int
    label_provenance: str
    data_fingerprint: str
    rows: tuple[PaperRow, ...]

    @property
    def title(self) -> str:
        return _TITLES[self.name]

    @property
    def caption(self) -> str:
        """What was measured on what, and what the ± and brackets are."""
        first, repeats = self.rows[0].score, max(row.score.repeats for row in self.rows)
        all_of = f"{self.transcripts:,} transcripts of {self.genes:,} genes"
        scored = f"{first.transcripts:,} of {first.genes:,}"
        is_part = first.transcripts < self.transcripts
        return (
            f"Ours: {all_of}{f' ({scored} are scored)' if is_part else ''}, {self.protocol}. Labels: "
            f"{self.label_provenance}. Mean over tissues; ± is the spread over {repeats} fits, brackets "
            "are 95% intervals over genes. Isoform order: pairs of a gene's isoforms put in the right order, "
            "chance 0.5; tissue profile: correlation over a transcript's tissues, their means taken off, "
            "chance 0. Paper: 170,000 measured transcripts, its encoders and test split, mean of 5 seeds "
            "(arXiv 2406.14150): to be read beside ours, not subtracted."
        )

    def cells(self) -> list[tuple[str, ...]]:
        """A row's cells, as all three forms show them."""
        return [_cells(row) for row in self.rows]

    def to_markdown(self) -> str:
        lines = ["| " + " | ".join(cells) + " |" for cells in (COLUMNS, *self.cells())]
        rule = "|---" * len(COLUMNS) + "|"
        return "\n".join([f"**{self.title}**", "", lines[0], rule, *lines[1:], "", self.caption, ""])

    def to_csv(self) -> str:
        """Numbers in columns of their own."""
        flat = [{**_flat(row), "protocol": self.protocol, "data": self.data_fingerprint} for row in self.rows]
        out = io.StringIO()
        writer = csv.DictWriter(out, fieldnames=list(flat[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
        return out.getvalue()

    def to_html(self) -> str:
        """One page that needs nothing beside it."""
        from jinja2 import Environment

        page = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
        return page.render(table=self, columns=COLUMNS, numeric=_NUMERIC)


def print_paper_table(table: PaperTable, console: Console) -> None:
    """For the terminal: what fits a line; Pearson and the notes are in the files."""
    from rich.table import Table
    from rich.text import Text

    has_isoforms = any(row.score.isoform_order.value is not None for row in table.rows)
    order = ("isoform order",) if has_isoforms else ()
    shown = Table(title=table.title, title_justify="left", title_style="bold", box=None)
    shown.add_column("row", min_width=12)
    shown.add_column("method", min_width=12)
    for column in ("R² [95%]", "Spearman", *order, "tissue profile", "paper R²", "paper Spearman"):
        is_score = column in ("R² [95%]", "Spearman")
        shown.add_column(column, justify="right", no_wrap=is_score, width=None if is_score else 8)
    for row in table.rows:
        score, paper = row.score, row.paper or PaperResult(encoders="")
        values = (score.isoform_order.value, score.tissue_profile.value)
        cells = (
            score.name, score.method, _shown(score.r2), _shown(score.spearman, interval=False),
            *("" if value is None else f"{value:.3f}" for value in values[0 if has_isoforms else 1 :]),
            _number(paper.r2), _number(paper.spearman),
        )  # fmt: skip
        shown.add_row(*(Text(cell) for cell in cells))
    console.print(shown)
    encoders = dict.fromkeys(name for row in table.rows for name in row.score.encoders.values())
    console.print(Text(f"Encoders: {', '.join(encoders) or 'none'}. {table.caption}"))


def _cells(row: PaperRow) -> tuple[str, ...]:
    score, paper = row.score, row.paper or PaperResult(encoders="")
    return (
        score.name,
        score.method,
        ", ".join(score.encoders.values()) or "none",
        score.trained,
        *(_shown(value) for value in (score.r2, score.spearman, score.pearson)),
        *("–" if one.value is None else _shown(one) for one in (score.isoform_order, score.tissue_profile)),
        " ".join(part for part in (_number(paper.r2), paper.note and f"({paper.note})") if part),
        _number(paper.spearman),
        paper.encoders,
    )


def _shown(score: Score, *, interval: bool = True) -> str:
    if score.value is None:
        return "undefined"
    spread = f" ± {score.sd:.3f}" if score.sd is not None else ""
    known = interval and score.low is not None and score.high is not None
    return f"{score.value:.3f}{spread}" + (f" [{score.low:.3f}, {score.high:.3f}]" if known else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _flat(row: PaperRow) -> dict[str, object]:
    score = row.score
    flat: dict[str, object] = {
        "row": score.name,
        "method": score.method,
        "modalities": "+".join(score.modalities),
        "encoders": " ".join(f"{modality}={name}" for modality, name in score.encoders.items()),
        "weights": score.trained,
        "labels": score.label_provenance,
        "genes": score.genes,
        "transcripts": score.transcripts,
        "fits": score.repeats,
    }
    for name in ("r2", "spearman", "pearson"):
        value: Score = getattr(score, name)
        flat |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        flat[f"{name}_sd"] = value.sd
    for name in WITHIN:
        value = getattr(score, name)
        flat |= {name: value.value, f"{name}_sd": value.sd}
    paper = row.paper or PaperResult(encoders="")
    return flat | {f"paper_{name}": value for name, value in paper.model_dump().items()}
