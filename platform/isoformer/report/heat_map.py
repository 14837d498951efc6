"""A heat map as inline SVG: rows of runs or trials, columns of tissues, each cell with its value to read.

Two scales. `one_way` is cividis, whose lightness rises evenly and which looks the same to readers who do not
see red or green (Nuñez, Anderton and Renslow 2018, doi:10.1371/journal.pone.0199239); it is the same on light
and dark pages. `two_way` is for differences: blue above zero, orange below, fading into the page at zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup, escape

from isoformer.report.collect import finite
from isoformer.report.svg import without_middle

CIVIDIS: Final = (
    (0, 34, 78), (18, 53, 112), (59, 73, 108), (87, 93, 109), (112, 113, 115), (138, 134, 120),
    (165, 156, 116), (195, 179, 105), (225, 204, 85), (254, 232, 56),
)  # fmt: skip
"""Ten steps of matplotlib's cividis."""
CELL, LABEL_WIDTH, LEGEND_HEIGHT = 22, 60, 46
LETTER_WIDTH = 7.4
LEGEND_STEPS = 24
NAME_LETTERS = 26


@dataclass(frozen=True)
class HeatMap:
    """Rows by name, each tissue -> value; `columns` in the order drawn, best mean first."""

    rows: Mapping[str, Mapping[str, float | None]]
    columns: tuple[str, ...]
    svg: Markup

    def value(self, row: str, column: str) -> float | None:
        value = self.rows[row].get(column)
        return value if finite(value) else None


def heat_map(
    rows: Mapping[str, Mapping[str, float | None]], *, title: str, name: str, is_difference: bool = False
) -> HeatMap | None:
    """None where no row has a value. `name` makes ids unique; a cell without a value is hatched."""
    known = {row: {k: float(v) for k, v in cells.items() if v is not None and finite(v)}
             for row, cells in rows.items()}  # fmt: skip
    values = [value for cells in known.values() for value in cells.values()]
    if not values:
        return None
    columns = _by_mean(rows, known)
    low, high = min(values), max(values)
    if is_difference:
        high = max(abs(low), abs(high))
        low = -high
    scale = _Scale(low, high, is_difference)
    label_width = max(LABEL_WIDTH, int(min(max(map(len, rows)), NAME_LETTERS) * LETTER_WIDTH) + 12)
    width = max(label_width + CELL * len(columns) + 20, 300)
    top = int(min(max(map(len, columns)), NAME_LETTERS) * LETTER_WIDTH) + 14
    height = top + CELL * len(rows) + LEGEND_HEIGHT + 8
    parts = [
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {width} {height}" class="heat" '
        f'style="min-width:{width}px;max-width:{width}px">',
        f'<defs><pattern id="{name}-none" width="6" height="6" patternUnits="userSpaceOnUse">'
        '<path d="M0 6 6 0" stroke="var(--muted)" stroke-width="1"/></pattern></defs>',
        *_names(columns, label_width, top),
    ]
    for place, (row, cells) in enumerate(known.items()):
        parts += _row(row, cells, columns, scale, (label_width, top + CELL * place, f"{name}-none"))
    parts += _legend(scale, label_width, top + CELL * len(rows) + 16)
    return HeatMap(rows, columns, Markup("\n".join([*parts, "</svg>"])))


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    is_two_way: bool

    def fill(self, value: float) -> str:
        """The attributes that colour a cell."""
        if self.is_two_way:
            share = abs(value) / self.high if self.high else 0.0
            colour = "var(--accent)" if value >= 0 else "var(--second)"
            return f'fill="{colour}" fill-opacity="{share:.3f}"'
        share = 0.5 if self.high == self.low else (value - self.low) / (self.high - self.low)
        return f'fill="{cividis(share)}"'


def cividis(share: float) -> str:
    """The colour at a share from 0 to 1 of the scale."""
    place = min(max(share, 0.0), 1.0) * (len(CIVIDIS) - 1)
    step = min(int(place), len(CIVIDIS) - 2)
    mixed = (
        round(a + (b - a) * (place - step)) for a, b in zip(CIVIDIS[step], CIVIDIS[step + 1], strict=True)
    )
    return "#" + "".join(f"{one:02x}" for one in mixed)


def _by_mean(
    rows: Mapping[str, Mapping[str, float | None]], known: Mapping[str, Mapping[str, float]]
) -> tuple[str, ...]:
    columns = dict.fromkeys(column for cells in rows.values() for column in cells)
    means = {}
    for column in columns:
        values = [cells[column] for cells in known.values() if column in cells]
        means[column] = sum(values) / len(values) if values else float("-inf")
    return tuple(sorted(columns, key=lambda column: (-means[column], column)))


def _names(columns: Sequence[str], left: int, top: int) -> list[str]:
    lines = []
    for place, column in enumerate(columns):
        x, y = left + CELL * place + CELL / 2 + 4, top - 6
        text = without_middle(column, NAME_LETTERS)
        lines.append(f'<text x="{x}" y="{y}" transform="rotate(-90 {x} {y})">{escape(text)}</text>')
    return lines


def _row(
    row: str, cells: Mapping[str, float], columns: Sequence[str], scale: _Scale, at: tuple[int, int, str]
) -> list[str]:
    left, top, hatch = at
    name = escape(without_middle(row, NAME_LETTERS))
    lines = [f'<text x="{left - 8}" y="{top + 15}" text-anchor="end">{name}</text>']
    for place, column in enumerate(columns):
        value = cells.get(column)
        fill = f'fill="url(#{hatch})"' if value is None else scale.fill(value)
        text = "no value" if value is None else f"{value:+.3f}" if scale.is_two_way else f"{value:.3f}"
        box = f'x="{left + CELL * place}" y="{top}" width="{CELL - 1}" height="{CELL - 1}"'
        told = escape(f"{row}, {column}: {text}")
        lines.append(f"<rect {box} {fill}><title>{told}</title></rect>")
    return lines


def _legend(scale: _Scale, left: int, top: int) -> list[str]:
    step = 160 / LEGEND_STEPS
    lines = []
    for index in range(LEGEND_STEPS):
        value = scale.low + (scale.high - scale.low) * index / (LEGEND_STEPS - 1)
        box = f'x="{left + step * index:.2f}" y="{top}" width="{step + 0.3:.2f}" height="10"'
        lines.append(f"<rect {box} {scale.fill(value)}/>")
    sign = "+" if scale.is_two_way else ""
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        value = scale.low + (scale.high - scale.low) * share
        text = f"{value:{sign}.3f}" if value or not sign else "0"
        lines.append(f'<text x="{left + 160 * share}" y="{top + 24}" text-anchor="{anchor}">{text}</text>')
    return lines
