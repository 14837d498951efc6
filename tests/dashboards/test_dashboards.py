"""The committed dashboards and alerts: what their script writes, in queries that parse, over metrics that are
told.
"""

from __future__ import annotations

import re
import runpy
import subprocess
from typing import Any

import promql_parser
import pytest
import yaml

from dashboards.committed import BOARDS, DASHBOARDS, alerts, board, panels, targets
from dashboards.prometheus import program
from isoformer.telemetry import METRICS

GRID_COLUMNS = 24
FILTERS = {"encoder", "run", "study", "instance"}
SUFFIXES = ("", "_bucket", "_count", "_sum")


def expressions() -> list[str]:
    return [target.expr_with(rate_interval="1m") for target in targets()] + [
        rule["expr"] for rule in alerts().values()
    ]


def test_committed_dashboards_are_what_the_script_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DASHBOARDS)
    built = runpy.run_path(str(DASHBOARDS / "build.py"))["build"]()
    assert {name: (DASHBOARDS / name).read_text(encoding="utf-8") for name in built} == built
    assert sorted(built) == sorted(f"{name}.json" for name in BOARDS)


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_is_explained_has_a_unit_and_asks_the_chosen_source(name: str) -> None:
    variables = {variable["name"]: variable for variable in board(name)["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert all(v["datasource"] == chosen for v in variables.values() if v["type"] == "query")
    assert len(titles := [panel["title"] for panel in panels(name)]) >= 12, titles
    for panel in panels(name):
        assert panel["description"].endswith((".", ".)")), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert all(asked["datasource"] == chosen for asked in [panel, *panel["targets"]]), panel["title"]
        used = set(re.findall(r"\$(\w+)", " ".join(target["expr"] for target in panel["targets"])))
        assert used - {"__rate_interval"} <= set(variables) & FILTERS, panel["title"]


@pytest.mark.parametrize("name", BOARDS)
def test_panels_lie_side_by_side_and_do_not_overlap(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in board(name)["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= GRID_COLUMNS
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_expression_parses() -> None:
    for expr in expressions():
        promql_parser.parse(expr)


def test_what_the_package_tells_is_drawn_and_what_is_drawn_is_told() -> None:
    asked = set(re.findall(r"ray_(isoformer_\w+)", " ".join(expressions())))
    told = {name + suffix: name for name in METRICS for suffix in SUFFIXES}
    assert asked <= set(told)
    assert {told[name] for name in asked} == set(METRICS)


def test_names_say_what_a_metric_is() -> None:
    for name, metric in METRICS.items():
        assert name.startswith("isoformer_")
        assert name.endswith("_total") == (metric.kind == "counter"), name
        assert metric.kind != "histogram" or name.endswith("_seconds"), name


def test_promtool_accepts_configuration_and_rules() -> None:
    """And every alert fires where it should, and only there."""
    for arguments in (
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "alerts_test.yml"),
    ):
        done = subprocess.run(
            [program("promtool"), *arguments], cwd=DASHBOARDS, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_says_what_to_do_and_is_tested() -> None:
    tests = yaml.safe_load((DASHBOARDS / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    fires: dict[str, set[bool]] = {}
    for case in (case for test in tests for case in test["alert_rule_test"]):
        fires.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("info", "warning", "critical"), name
        assert set(rule["annotations"]) == {"summary", "description"}, name
        assert fires[name] == {True, False}, name


def test_provisioning_names_the_files_there_are() -> None:
    def read(name: str) -> dict[str, Any]:
        return yaml.safe_load((DASHBOARDS / "provisioning" / name).read_text(encoding="utf-8"))

    source = read("datasources/prometheus.yaml")["datasources"][0]
    scrape = yaml.safe_load((DASHBOARDS / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert (source["type"], source["jsonData"]["timeInterval"]) == ("prometheus", scrape)
    assert read("dashboards/isoformer.yaml")["providers"][0]["type"] == "file"
