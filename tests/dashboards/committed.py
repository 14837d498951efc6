"""What the committed files hold: the queries of the dashboards, the expressions of the alerts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DASHBOARDS = Path(__file__).resolve().parents[2] / "dashboards"
BOARDS = ("embedding", "training", "sweep", "cluster")


@dataclass(frozen=True)
class Target:
    """One query of one panel. `requires`: what a cluster must have for it to show anything."""

    board: str
    panel: str
    expr: str
    requires: str | None

    def expr_with(self, rate_interval: str) -> str:
        """As Grafana asks it, with everything chosen in the filters at the top."""
        return re.sub(r"\$(encoder|run|study|instance)", ".*", self.expr).replace(
            "$__rate_interval", rate_interval
        )


def board(name: str) -> dict[str, Any]:
    return json.loads((DASHBOARDS / f"{name}.json").read_text(encoding="utf-8"))


def panels(name: str) -> Iterator[dict[str, Any]]:
    """Of one dashboard, without the rows' titles."""
    yield from (panel for panel in board(name)["panels"] if panel["type"] != "row")


def targets() -> list[Target]:
    """Every query of all four."""
    return [
        Target(name, panel["title"], target["expr"], _requires(panel))
        for name in BOARDS
        for panel in panels(name)
        for target in panel["targets"]
    ]


def alerts() -> dict[str, dict[str, Any]]:
    """Rules by name."""
    groups = yaml.safe_load((DASHBOARDS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def _requires(panel: dict[str, Any]) -> str | None:
    found = re.search(r"\(Shows nothing without: (\w+)\.\)", panel["description"])
    return found[1] if found else None
