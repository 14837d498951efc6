"""Figures for Prometheus cost nothing where there is no Ray, and never end a run."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import time

import pytest

from isoformer.telemetry import REFRESH_SECONDS, count, observe, show

WITHOUT_RAY = """
import sys
from isoformer.telemetry import count, observe, show
count("isoformer_tokens_total", 5, encoder="esm2")
show("isoformer_shards_left", 5, encoder="esm2")
observe("isoformer_pack_seconds", 0.5, encoder="esm2")
sys.exit(str({"ray", "torch"} & set(sys.modules) or ""))
"""


def test_without_ray_nothing_is_told_and_ray_is_not_imported() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_RAY], capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_a_label_that_a_metric_does_not_have_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"isoformer_tokens_total: labels \['run'\]; it has \['encoder'\]"):
        count("isoformer_tokens_total", 5, run="final")


def test_trouble_of_rays_does_not_reach_the_work(
    ray_local: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ray.util import metrics

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the exporter is gone")

    for kind, method in ((metrics.Counter, "inc"), (metrics.Gauge, "set"), (metrics.Histogram, "observe")):
        monkeypatch.setattr(kind, method, broken)
    with caplog.at_level(logging.DEBUG, logger="isoformer.telemetry"):
        count("isoformer_tokens_total", 5, encoder="esm2")
        show("isoformer_shards_left", 5, encoder="esm2")
        observe("isoformer_pack_seconds", 0.5, encoder="esm2")
    for name in ("isoformer_tokens_total", "isoformer_shards_left", "isoformer_pack_seconds"):
        assert f"{name} was not told to Prometheus: the exporter is gone" in caplog.text


def test_what_is_not_defined_is_not_shown(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.util import metrics

    shown: set[tuple[str, float]] = set()
    monkeypatch.setattr(
        metrics.Gauge, "set", lambda self, value, tags: shown.add((tags.get("run", ""), value))
    )
    for value in (None, math.nan, math.inf, 0.5):
        show("isoformer_train_score", value, run="undefined at first", metric="r2")
    assert {value for run, value in shown if run == "undefined at first"} == {0.5}


def test_a_gauge_is_told_again_since_ray_forgets_it(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.util import metrics

    told: list[float] = []
    show("isoformer_train_workers", 2, run="goes on")
    monkeypatch.setattr(
        metrics.Gauge,
        "set",
        lambda self, value, tags: told.append(value) if tags.get("run") == "goes on" else None,
    )
    deadline = time.monotonic() + 10 * REFRESH_SECONDS
    while len(told) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert told[:2] == [2, 2]
