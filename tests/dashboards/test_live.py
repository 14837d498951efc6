"""Every panel and every alert on a live Prometheus, while the pipeline runs small on a real Ray."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from dashboards import prometheus
from dashboards.committed import Target, alerts, targets
from dashboards.prometheus import Prometheus
from isoformer.dashboards import services
from isoformer.settings import Settings

T = TypeVar("T")
DRIVER = Path(__file__).with_name("driver.py")
TESTS = DRIVER.parents[1]
WINDOW = "15s"
"""Stands where Grafana would put four scrape intervals."""
PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Live:
    server: Prometheus
    ray: str
    start: float


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A pipeline that has run, its processes still there, with Prometheus watching from the beginning."""
    prometheus.program("prometheus")
    folder = tmp_path_factory.mktemp("live")
    with (folder / "driver.log").open("wb") as log:
        driver = subprocess.Popen(
            [sys.executable, str(DRIVER), str(folder / "root")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )  # fmt: skip
    try:
        session, ray = said(driver, folder / "driver.log").split()
        with prometheus.running(folder, Path(session, "prom_metrics_service_discovery.json")) as server:
            start = time.time()
            assert said(driver, folder / "driver.log") == "done"
            yield Live(server, ray, start)
    finally:
        assert driver.stdin is not None
        driver.stdin.close()
        driver.wait(timeout=120)


def said(driver: subprocess.Popen[str], log: Path) -> str:
    """The driver's next line."""
    assert driver.stdout is not None
    line = driver.stdout.readline().strip()
    assert line, log.read_text()[-4000:]
    return line


@pytest.mark.long
@pytest.mark.timeout(600)
def test_panels_alerts_and_the_verb_see_a_pipeline_that_runs(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One test: what it looks at takes minutes to make."""
    assert_every_query_finds_figures(live)
    assert_every_alert_can_be_asked(live)
    assert_the_figures_are_the_runs(live)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", live.ray)
    monkeypatch.setenv("RAY_PROMETHEUS_HOST", live.server.address)
    assert {"Ray", "Prometheus"} <= {service.name for service in services(Settings()) if service.is_up}


def assert_every_query_finds_figures(live: Live) -> None:
    has_gpu = bool(live.server.samples("ray_node_gpus_available > 0", live.start))
    expected = {target for target in targets() if target.requires == "gpu" and not has_gpu}
    empty = set(targets())

    def without_figures() -> set[Target]:
        empty.difference_update([target for target in empty if finite(live, target)])
        return empty

    assert settled(without_figures, expected) == expected


def assert_every_alert_can_be_asked(live: Live) -> None:
    groups = live.server.ask("rules")["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert set(rules) == set(alerts())
    problems = {name: rule["lastError"] for name, rule in rules.items() if rule.get("lastError")}
    assert problems == {}
    assert all(rule["health"] == "ok" for rule in rules.values())


def assert_the_figures_are_the_runs(live: Live) -> None:
    """Counted once, whoever did the work."""
    expected = {
        'sum(ray_isoformer_quarantined_total{encoder="esm2-tiny"})': [1],
        "sum(ray_isoformer_train_epochs_total)": [2],
        "sum(ray_isoformer_sweep_trials_total)": [2],
        "sum(ray_isoformer_shards_left)": [0],
        "sum(ray_isoformer_sweep_trials_running)": [0],
        "sum(ray_isoformer_tracking_waiting)": [0],
    }

    def newest() -> dict[str, list[float]]:
        return {expr: live.server.samples(expr, live.start)[-1:] for expr in expected}

    assert settled(newest, expected) == expected


def settled(ask: Callable[[], T], expected: T) -> T:
    """The answer, asked again for a while: what was told last is scraped a little later."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := ask()) != expected and time.monotonic() < deadline:
        time.sleep(1)
    return found


def finite(live: Live, target: Target) -> bool:
    values = live.server.samples(target.expr_with(rate_interval=WINDOW), live.start)
    return any(math.isfinite(value) for value in values)
