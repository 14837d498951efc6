"""Links from our runs to their pages in MLflow's UI, for a report that is read beside it.

In: the tracking configuration and our keys of runs. Out: key -> address, for the runs that the store knows. A
store that does not answer within seconds makes no links and no error: a report is complete without them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from isoformer.tracking.config import TrackingConfig
from isoformer.tracking.shipper import first_line
from isoformer.tracking.sink import RUN_KEY_TAG, quiet_environment, require_database

if TYPE_CHECKING:
    from mlflow.entities import Run

RUNS_A_PAGE = 1000

logger = logging.getLogger(__name__)


def run_links(config: TrackingConfig, keys: Sequence[str], *, timeout_seconds: float = 8.0) -> dict[str, str]:
    """Our key of a run -> its page in MLflow's UI; runs that the store does not know are left out.

    For a local store the page is where the command of `open_line` serves it. Empty where tracking is off, or
    the store is not there or does not answer in `timeout_seconds`. One search, whatever the number of keys.
    """
    if not keys or not config.enabled or config.is_missing:
        return {}
    quiet_environment()
    import mlflow.tracking  # noqa: F401 here, since two threads can meet a half-imported module

    found: dict[str, str] = {}
    problems: list[Exception] = []
    asker = threading.Thread(
        target=_ask, args=(config, set(keys), found, problems), name="isoformer-links", daemon=True
    )
    asker.start()
    asker.join(timeout_seconds)
    if asker.is_alive() or problems:
        why = first_line(problems[0]) if problems else f"no answer in {timeout_seconds:g} s"
        logger.info("no links into MLflow at %s: %s", config.shown_uri, why)
        return {}
    return found


def _ask(config: TrackingConfig, wanted: set[str], found: dict[str, str], problems: list[Exception]) -> None:
    try:
        found.update(_links(config, wanted))
    except Exception as error:  # MLflow's, a driver's or the network's: all mean that there are no links
        problems.append(error)


def _links(config: TrackingConfig, wanted: set[str]) -> dict[str, str]:
    from mlflow.tracking import MlflowClient

    require_database(config)
    client = MlflowClient(tracking_uri=config.resolved_uri)
    experiment = client.get_experiment_by_name(config.experiment)
    if experiment is None:
        return {}
    links: dict[str, str] = {}
    base = f"{config.ui_address}/#/experiments/{experiment.experiment_id}/runs"
    for run in _tagged_runs(client, experiment.experiment_id):
        key = run.data.tags[RUN_KEY_TAG]
        if key in wanted:
            links.setdefault(key, f"{base}/{run.info.run_id}")
            if len(links) == len(wanted):
                break
    return links


def _tagged_runs(client: Any, experiment_id: str) -> Iterator[Run]:
    """Runs of ours, newest first, page by page."""
    token = None
    while True:
        page = client.search_runs(
            [experiment_id], f"tags.`{RUN_KEY_TAG}` != ''", max_results=RUNS_A_PAGE, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return
