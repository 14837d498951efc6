"""Dashboards as data, and the JSON that Grafana imports made of them.

A `Board` has rows of `Panel`s; every panel says in a sentence what it shows, has a unit, and asks the data
source that is chosen at the top of the page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
COLUMNS = 24
COLOURS = ("green", "orange", "red")


@dataclass(frozen=True)
class Query:
    """What Prometheus is asked, and the name of each line of the answer."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """`warn_at`: where the colour turns orange and red, or red and orange where `low_is_bad`.

    `requires`: what a cluster must have for the panel to show anything ("gpu", "autoscaler").
    """

    title: str
    description: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Literal["timeseries", "stat"] = "timeseries"
    warn_at: tuple[float, float] | None = None
    low_is_bad: bool = False
    ceiling: float | None = None
    stacked: bool = False
    requires: str | None = None


@dataclass(frozen=True)
class Row:
    """Panels side by side under a title."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    """`filters`: label → the metric whose values of that label may be chosen from at the top."""

    name: str
    title: str
    description: str
    rows: tuple[Row, ...]
    filters: tuple[tuple[str, str], ...] = ()

    @property
    def panels(self) -> Iterator[Panel]:
        for row in self.rows:
            yield from row.panels


def to_json(board: Board) -> str:
    """The dashboard as Grafana imports it."""
    built = (
        dashboard.Dashboard(f"IsoFormer: {board.title}")
        .uid(f"isoformer-{board.name}")
        .description(board.description)
        .tags(["isoformer"])
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .readonly()
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .link(_to_the_others())
    )
    for label, metric in board.filters:
        built = built.with_variable(_filter(label, metric))
    for row in board.rows:
        built = built.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            width = COLUMNS // (len(row.panels) if len(row.panels) <= 6 else 4)
            built = built.with_panel(_panel(panel, width))
    return json.dumps(built.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _to_the_others() -> Any:
    link = dashboard.DashboardLink("IsoFormer").type(models.DashboardLinkType.DASHBOARDS)
    return link.tags(["isoformer"]).as_dropdown(True).include_vars(False).keep_time(True)


def _filter(label: str, metric: str) -> Any:
    return (
        dashboard.QueryVariable(label)
        .label(label.capitalize())
        .datasource(SOURCE)
        .query(f"label_values({metric}, {label})")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(text="All", value="$__all", selected=True))
    )


def _panel(panel: Panel, width: int) -> Any:
    made: Any = _number() if panel.kind == "stat" else _lines(panel)
    made = made.title(panel.title).description(_described(panel)).unit(panel.unit).datasource(SOURCE)
    made = made.span(width).height(4 if panel.kind == "stat" else 8).min(0 if panel.ceiling else None)
    if panel.ceiling is not None:
        made = made.max(panel.ceiling)
    if panel.warn_at is not None:
        made = made.thresholds(_thresholds(panel.warn_at, panel.low_is_bad))
        made = made.color_scheme(_by_threshold() if panel.kind == "stat" else _palette())
    for number, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend)
        made = made.with_target(target.ref_id("ABCDEF"[number]).datasource(SOURCE))
    return made


def _described(panel: Panel) -> str:
    return panel.description + (f" (Shows nothing without: {panel.requires}.)" if panel.requires else "")


def _number() -> Any:
    last = common.ReduceDataOptions().calcs(["lastNotNull"])
    made = stat.Panel().reduce_options(last).no_value("none")
    return made.graph_mode(common_models.BigValueGraphMode.AREA)


def _lines(panel: Panel) -> Any:
    legend = common.VizLegendOptions().show_legend(True).calcs(["lastNotNull", "max"])
    made = (
        timeseries.Panel()
        .legend(
            legend.display_mode(common_models.LegendDisplayMode.TABLE).placement(
                common_models.LegendPlacement.BOTTOM
            )
        )
        .tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
        .fill_opacity(40 if panel.stacked else 8)
        .span_nulls(False)
    )
    if panel.stacked:
        made = made.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if panel.warn_at is not None:
        style = common.GraphThresholdsStyleConfig().mode(common_models.GraphTresholdsStyleMode.DASHED)
        made = made.thresholds_style(style)
    return made


def _thresholds(warn_at: tuple[float, float], low_is_bad: bool) -> Any:
    colours = COLOURS[::-1] if low_is_bad else COLOURS
    steps = [models.Threshold(value=None, color=colours[0])]
    steps += [
        models.Threshold(value=value, color=colour)
        for value, colour in zip(warn_at, colours[1:], strict=True)
    ]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def _by_threshold() -> Any:
    return dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS)


def _palette() -> Any:
    return dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC)
