"""The committed dashboards are what their script writes."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

DASHBOARDS = Path(__file__).resolve().parents[2] / "dashboards"


def test_committed_dashboard_is_what_the_script_builds() -> None:
    built = runpy.run_path(str(DASHBOARDS / "build.py"))["build"]()
    committed = (DASHBOARDS / "cluster.json").read_text()
    assert committed == built
    panels = json.loads(committed)["panels"]
    assert len(panels) == 6
    assert all(panel["targets"][0]["expr"].count("ray_") == 1 for panel in panels)
