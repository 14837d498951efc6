"""`isoformer benchmark track`: both ways write the same trials, and the page that is timed shows them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isoformer.benchmark import track
from isoformer.benchmark.rounds import Benchmark
from isoformer.benchmark.track import OURS, PARTS, STOCK, benchmark_track
from isoformer.errors import ClusterError

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def written() -> Iterator[dict[str, list[Any]]]:
    """The runs of each experiment, read before the server goes."""
    found: dict[str, list[Any]] = {}
    page = track.experiment_page

    def spied(server: Any, *arguments: Any) -> Any:
        from mlflow.tracking import MlflowClient

        client = MlflowClient(server.url)
        for name in ("ours", "theirs"):
            experiment = client.get_experiment_by_name(name)
            assert experiment is not None
            found[name] = list(client.search_runs([experiment.experiment_id]))
        return page(server, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(track, "experiment_page", spied)
        yield found


@pytest.fixture(scope="module")
def result(written: dict[str, list[Any]]) -> Benchmark:
    if shutil.which("chromedriver") is None:
        pytest.skip("needs chromium and chromedriver")
    return benchmark_track(runs=3, epochs=2, rounds=1, page_runs=4, page_loads=2)


def test_both_write_the_same_trials(result: Benchmark, written: dict[str, list[Any]]) -> None:
    def trials(name: str) -> list[tuple[Any, ...]]:
        return sorted(
            (
                run.info.run_name,
                run.info.status,
                *sorted(run.data.metrics.items()),
                *sorted(run.data.params.items()),
            )
            for run in written[name]
            if run.info.run_name.startswith("trial-")
        )

    ours, theirs = trials("ours"), trials("theirs")
    assert len(ours) == 1 + 3 and ours == theirs
    assert ours[-1][2] == ("score", 2.01)


def test_ratios_are_of_runs_a_second_and_the_page_is_timed(result: Benchmark) -> None:
    for part in PARTS:
        (ours,), (theirs,) = result.raw[f"{OURS}: {part}"], result.raw[f"{STOCK}: {part}"]
        assert result.ratios[f"runs a second, {part}: {OURS} / {STOCK}"] == pytest.approx(theirs / ours)
    assert len(result.raw["experiment_page"]) == len(result.raw["experiment_trials"]) == 2
    assert 0 < result.notes["experiment_page_seconds"] < 60


def test_no_browser_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="chromium and chromedriver"), track._browser(tmp_path):
        pass
