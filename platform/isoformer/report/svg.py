"""matplotlib drawings as inline SVG whose colours are the page's CSS variables.

Text stays text, ids are unique across the page, and nothing is rastered. Figures are narrow, so that a phone
shows them whole.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from markupsafe import Markup, escape

Figure = Any  # matplotlib is imported where it is used, and its keyword types refuse a dict of settings
Axes = Any

WIDTH_INCHES = 5.0
SERIES = ("c1", "c2", "c3", "c4", "c5", "c6")
"""Colours of lines that are told apart; a seventh line is the first colour with other dashes."""
COLOURS = {
    "ink": "#010101",
    "muted": "#020202",
    "line": "#030303",
    "accent": "#040404",
    "second": "#050505",
    "soft": "#060606",
    "paper": "#070707",
    "bad": "#080808",
    **{name: f"#09090{number}" for number, name in enumerate(SERIES)},
}
"""Stand-ins that matplotlib writes into the SVG; each becomes `var(--name)`, so dark mode costs nothing."""
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@contextmanager
def canvas(
    height_inches: float, name: str, *, width_inches: float = WIDTH_INCHES
) -> Iterator[tuple[Figure, Axes]]:
    """A figure with axes, in the page's style for the length of the block. `name` makes ids unique."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {**SETTINGS, "svg.hashsalt": name}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width_inches, height_inches), layout="constrained", label=name)
        FigureCanvasSVG(figure)
        yield figure, figure.add_subplot()


def legend_above(axes: Axes, *, columns: int | None = None) -> None:
    """What has a label: in one line over the axes, or in so many columns from the figure's left edge."""
    handles, labels = axes.get_legend_handles_labels()
    if handles and columns is None:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles), borderaxespad=0.2)
    elif handles:
        axes.figure.legend(handles, labels, loc="outside upper left", ncols=columns, borderaxespad=0.2)


def log_axis(axes: Axes) -> None:
    """A logarithmic x axis with plain numbers: powers would need mathematical type."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" if value < 1000 else f"{value:,.0f}")
    )
    axes.xaxis.set_minor_formatter(NullFormatter())


def series_style(index: int) -> dict[str, Any]:
    """Colour, dashes and marker of the line with this index: colours alone are not seen by everyone."""
    dashes = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
    turn = index // len(SERIES)
    return {
        "color": COLOURS[SERIES[index % len(SERIES)]],
        "linestyle": dashes[(index + turn) % len(dashes)],
        "marker": "osD^vP"[(index + turn) % 6],
    }


def without_middle(name: str, letters: int) -> str:
    """A long name with its middle left out: names of one kind differ at their ends."""
    if len(name) <= letters:
        return name
    half = (letters - 1) // 2
    return f"{name[:half]}…{name[half + 1 - letters :]}"


def to_svg(figure: Figure, description: str) -> Markup:
    """The figure as an <svg> element with a text alternative. Call it within `canvas`."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id="|xlink:href="#)|(url\(#)', rf"\g<0>{figure.get_label()}-", text)
    text = re.sub(r"font: ([^;\"]*?)'[^;\"]*", r"font: \1inherit", text)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'(?<= d=")[^"]*', _rounded, text)
    for role, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{role})")
    for attribute in ("height", "width"):
        text = re.sub(rf'(<svg[^>]*?) {attribute}="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"\n\s*", "\n", text)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1))


def _rounded(path: re.Match[str]) -> str:
    """A path with a hundredth of a point where matplotlib writes a millionth."""
    return re.sub(r"(\.\d\d)\d+", r"\1", path[0]).replace("\n", " ")
