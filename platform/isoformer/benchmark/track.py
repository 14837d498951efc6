"""`isoformer benchmark track`: a sweep's runs written to a real MLflow server; its page in a real browser.

Contestants write the same trials in turn to one `mlflow server` on loopback (SQLite): `OURS` through our
Tracker; `STOCK` as MLflow's callback for Ray Tune does, a request a parameter and a metric, each of which the
caller waits for. Seconds are the caller's (`caller`) and those until the server has everything (`delivered`);
a ratio is ours over theirs in runs a second, so above one is faster.

Then a fresh experiment gets one parent and many trials through our Tracker, and headless Chromium opens the
experiment's page. `experiment_page_seconds` is from the address to the first row of runs, which is the
parent's; `experiment_trials_seconds` from the click that unfolds it to the first rows of trials. Each is the
median of several loads, in a browser that has MLflow's own files in its cache.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

from isoformer.benchmark.local_mlflow import LocalMlflow
from isoformer.benchmark.rounds import Benchmark, in_turns, machine, median_ratio, versions
from isoformer.errors import ClusterError
from isoformer.tracking import Tracker, TrackingConfig

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

OURS: Final = "tracker"
STOCK: Final = "one call a metric"
PARTS: Final = ("caller", "delivered")
Turn = dict[str, float]
"""Seconds of each of `PARTS`."""
METRICS: Final = ("train_loss", "val_loss", "val_r2", "val_spearman", "score")
_PARAMS: Final = {f"model.choice_{number}": str(number) for number in range(12)}
_TAGS: Final = {"data_fingerprint": "0" * 32, "label_provenance": "measured", "encoder_key.rna": "e" * 40}
_CONFIG: Final = "model:\n" + "  width: 64\n" * 80
_PAGE_SECONDS: Final = 120
_RUN_LINKS: Final = "[role=gridcell] a[href*='/runs/']"
_UNFOLD: Final = "[role=gridcell] button"
_PARENT, _TRIAL = "sweep", "trial-"


def benchmark_track(
    runs: int = 20, epochs: int = 20, rounds: int = 3, page_runs: int = 500, page_loads: int = 5
) -> Benchmark:
    """Time both ways of writing `runs` trials of `epochs`, then a page of `page_runs` trials.

    ClusterError where the server does not start, or the browser shows no rows within two minutes.
    """
    with tempfile.TemporaryDirectory(prefix="isoformer-benchmark-") as name:
        folder = Path(name)
        with LocalMlflow(folder) as server:
            contestants = {
                OURS: partial(_with_tracker, server, folder, runs, epochs),
                STOCK: partial(_one_call_each, server, runs, epochs),
            }
            for contestant in contestants.values():  # imports, the store's tables and the first connection
                contestant(runs=1)
            results = in_turns(contestants, rounds)
            page, trials = experiment_page(server, folder, page_runs, epochs, page_loads)
    raw = {
        f"{name}: {part}": [turn[part] for turn in turns] for name, turns in results.items() for part in PARTS
    }
    ratios = {
        f"runs a second, {part}: {OURS} / {STOCK}": median_ratio(
            raw[f"{STOCK}: {part}"], raw[f"{OURS}: {part}"]
        )
        for part in PARTS
    }
    return Benchmark(
        what="track",
        settings={"runs": runs, "epochs": epochs, "metrics": len(METRICS), "page_runs": page_runs},
        rounds=len(results[OURS]),
        raw=raw | {"experiment_page": page, "experiment_trials": trials},
        ratios=ratios,
        notes={"experiment_page_seconds": median(page), "experiment_trials_seconds": median(trials)},
        hardware=machine("cpu", len(os.sched_getaffinity(0))),
        versions=versions("mlflow", "selenium"),
    )


def _with_tracker(
    server: LocalMlflow, folder: Path, number: int, epochs: int, *, runs: int | None = None
) -> Turn:
    config = TrackingConfig(uri=server.url, folder=str(folder), experiment="ours", close_seconds=600)
    with Tracker(config) as tracker:
        tracker.flush()  # a sweep opens its tracker once
        started = time.perf_counter()
        write_sweep(tracker, runs or number, epochs)
        caller = time.perf_counter() - started
        delivered = tracker.flush(600)
        seconds = time.perf_counter() - started
    if not delivered:
        raise ClusterError(f"the server at {server.url} did not take {number} runs in ten minutes")
    return {"caller": caller, "delivered": seconds}


def write_sweep(tracker: Tracker, runs: int, epochs: int) -> None:
    """A parent and its trials, as `isoformer sweep` tracks them."""
    parent = tracker.start_run("sweep", tags=_TAGS, params={"trials": str(runs)})
    for number in range(runs):
        run = tracker.start_run(f"trial-{number:03d}", parent=parent, tags=_TAGS, params=_PARAMS)
        tracker.log_text(run, _CONFIG, "config.yaml")
        for epoch in range(epochs):
            tracker.log_metrics(run, _metrics(number, epoch), step=epoch)
        tracker.set_tags(run, {"trial.state": "complete"})
        tracker.end_run(run)
    tracker.end_run(parent)


def _one_call_each(server: LocalMlflow, number: int, epochs: int, *, runs: int | None = None) -> Turn:
    """The calls of `ray.air.integrations.mlflow`, made by hand: through Ray they would cost its time, too."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(server.url)
    found = client.get_experiment_by_name("theirs")
    experiment = found.experiment_id if found else client.create_experiment("theirs")
    started = time.perf_counter()
    for trial in range(runs or number):
        run = client.create_run(experiment, tags=_TAGS, run_name=f"trial-{trial:03d}").info.run_id
        for key, value in _PARAMS.items():
            client.log_param(run, key, value)
        for epoch in range(epochs):
            for name, score in _metrics(trial, epoch).items():
                client.log_metric(run, name, score, step=epoch)
        client.log_text(run, _CONFIG, "config.yaml")
        client.set_terminated(run)
    seconds = time.perf_counter() - started
    return {"caller": seconds, "delivered": seconds}


def experiment_page(
    server: LocalMlflow, folder: Path, runs: int, epochs: int, loads: int
) -> tuple[list[float], list[float]]:
    """Seconds to the parent's row, and from its unfolding to trials, of each load of an experiment's page."""
    config = TrackingConfig(uri=server.url, folder=str(folder), experiment="page", close_seconds=600)
    with Tracker(config) as tracker:
        write_sweep(tracker, runs, epochs)
        tracker.flush(600)
    address = runs_page(config)
    with _browser(folder / "browser") as browser:
        load_seconds(browser, address)  # MLflow's own files are cached from here on
        loaded = [load_seconds(browser, address) for _ in range(loads)]
    return [page for page, _ in loaded], [trials for _, trials in loaded]


def runs_page(config: TrackingConfig) -> str:
    """The address that shows an experiment's runs: MLflow may open it in a mode that has none."""
    from mlflow.tracking import MlflowClient

    experiment = MlflowClient(config.resolved_uri).get_experiment_by_name(config.experiment)
    assert experiment is not None, "write runs first"
    return f"{config.ui_address}/#/experiments/{experiment.experiment_id}/runs"


def load_seconds(browser: Chrome, address: str) -> tuple[float, float]:
    """To the parent's row; from unfolding it to a trial's. ClusterError where none is shown."""
    browser.get("about:blank")
    started = time.perf_counter()
    browser.get(address)
    _wait_for_run(browser, _PARENT)
    shown = time.perf_counter()
    browser.find_element("css selector", _UNFOLD).click()
    _wait_for_run(browser, _TRIAL)
    unfolded = time.perf_counter()
    browser.execute_script("localStorage.clear()")  # the page would remember what was unfolded
    return shown - started, unfolded - shown


def _wait_for_run(browser: Chrome, name: str) -> None:
    from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
    from selenium.webdriver.support.ui import WebDriverWait

    waiting = WebDriverWait(
        browser, _PAGE_SECONDS, poll_frequency=0.05, ignored_exceptions=[StaleElementReferenceException]
    )
    try:
        waiting.until(
            lambda page: any(
                link.text.startswith(name) for link in page.find_elements("css selector", _RUN_LINKS)
            )
        )
    except TimeoutException:
        said = browser.find_element("css selector", "body").text[:500]
        where = browser.current_url
        raise ClusterError(
            f"{where} shows no run {name!r} after {_PAGE_SECONDS} s; it says: {said}"
        ) from None


@contextmanager
def _browser(folder: Path) -> Iterator[Chrome]:
    """Headless Chromium from this machine: nothing is downloaded. ClusterError where there is none."""
    from selenium import webdriver
    from selenium.common.exceptions import WebDriverException

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        raise ClusterError("no Chromium to open the page with: chromium and chromedriver must be on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1600,1000")
    for flag in (*flags, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    try:
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    except WebDriverException as error:
        raise ClusterError(f"no Chromium to open the page with: {error.msg}") from None
    try:
        yield browser
    finally:
        browser.quit()


def _metrics(trial: int, epoch: int) -> dict[str, float]:
    return {name: trial + epoch / 100 for name in METRICS}
