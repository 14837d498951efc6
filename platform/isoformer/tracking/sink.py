"""The only module that talks to MLflow: takes events, makes client calls with explicit run ids.

A run is found by our own key in the tag `isoformer.run`, never by "the active run": so any process can add to
it, and sending an event twice changes nothing (MLflow keys a metric by name, step, time and value).
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from isoformer.tracking.config import TrackingConfig
from isoformer.tracking.journal import Event

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

RUN_KEY_TAG = "isoformer.run"
METRICS_A_REQUEST = 1000
PARAMS_A_REQUEST = 100

REFUSED_FOR_GOOD = frozenset(
    {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"}
)


class RejectedError(Exception):
    """MLflow has understood the event and will never take it."""


class MlflowSink:
    """Sends events; any exception but RejectedError means: not now, try again later."""

    def __init__(self, config: TrackingConfig) -> None:
        self._config = config
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._run_ids: dict[str, str] = {}

    def send(self, events: list[Event]) -> None:
        """One event of any kind, or several of kind "metrics" (one request a run)."""
        from mlflow.exceptions import MlflowException

        try:
            self._connect()
            if events[0]["op"] == "metrics":
                self._metrics(events)
            else:
                getattr(self, f"_{events[0]['op']}")(events[0])
        except LookupError as error:
            raise RejectedError(str(error)) from error
        except MlflowException as error:
            if error.error_code in REFUSED_FOR_GOOD:
                raise RejectedError(str(error)) from error
            raise

    def run_id(self, key: str) -> str:
        """MLflow's id of our run. LookupError where MLflow does not know the run (yet)."""
        if key not in self._run_ids:
            found = self._search(key)
            if found is None:
                raise LookupError(f"MLflow at {self._config.shown_uri} has no run tagged {RUN_KEY_TAG}={key}")
            self._run_ids[key] = found
        return self._run_ids[key]

    def warm(self) -> None:
        """Import MLflow and make a fresh store's tables (seconds) before the first event needs them."""
        self._connect()

    def count_runs(self) -> int:
        """Runs of the experiment, at most 1,000: a question that any store must be able to answer."""
        self._connect()
        return len(self._mlflow.search_runs([self._experiment_id], max_results=1000))

    def _connect(self) -> None:
        if self._client is not None:
            return
        quiet_environment()
        from mlflow.tracking import MlflowClient

        for name in ("mlflow.store.db.utils", "alembic", "mlflow.tracking"):
            logging.getLogger(name).setLevel(logging.WARNING)
        client = MlflowClient(tracking_uri=self._config.resolved_uri)
        self._experiment_id = _experiment(client, self._config)
        self._client = client

    @property
    def _mlflow(self) -> MlflowClient:
        assert self._client is not None, "connect first"
        return self._client

    def _search(self, key: str) -> str | None:
        runs = self._mlflow.search_runs(
            [self._experiment_id], f"tags.`{RUN_KEY_TAG}` = '{key}'", max_results=1
        )
        return runs[0].info.run_id if runs else None

    def _start(self, event: Event) -> None:
        found = self._search(event["run"])
        if found is None:
            found = self._created(event)
        else:
            self._mlflow.update_run(found, status="RUNNING")
        self._run_ids[event["run"]] = found
        self._log_params(found, event["params"])

    def _created(self, event: Event) -> str:
        tags = {RUN_KEY_TAG: event["run"], **event["tags"]}
        if event["parent"]:
            tags["mlflow.parentRunId"] = self.run_id(event["parent"])
        run = self._mlflow.create_run(
            self._experiment_id, start_time=event["time"], tags=tags, run_name=event["name"]
        )
        return run.info.run_id

    def _log_params(self, run_id: str, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        listed = [Param(key, value) for key, value in params.items()]
        for start in range(0, len(listed), PARAMS_A_REQUEST):
            self._mlflow.log_batch(run_id, params=listed[start : start + PARAMS_A_REQUEST])

    def _metrics(self, events: list[Event]) -> None:
        from mlflow.entities import Metric

        by_run: dict[str, list[Metric]] = defaultdict(list)
        for event in events:
            for key, value in event["values"].items():
                by_run[event["run"]].append(Metric(key, value, event["time"], event["step"]))
        for key, metrics in by_run.items():
            for start in range(0, len(metrics), METRICS_A_REQUEST):
                self._mlflow.log_batch(self.run_id(key), metrics=metrics[start : start + METRICS_A_REQUEST])

    def _tags(self, event: Event) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(key, value) for key, value in event["tags"].items()]
        self._mlflow.log_batch(self.run_id(event["run"]), tags=tags)

    def _text(self, event: Event) -> None:
        self._mlflow.log_text(self.run_id(event["run"]), event["text"], event["path"])

    def _file(self, event: Event) -> None:
        if not os.path.exists(event["file"]):
            raise RejectedError(f"{event['file']} is no longer there")
        self._mlflow.log_artifact(self.run_id(event["run"]), event["file"], event["folder"] or None)
        shutil.rmtree(os.path.dirname(event["file"]))  # our own copy: see Tracker.log_file

    def _end(self, event: Event) -> None:
        self._mlflow.set_terminated(self.run_id(event["run"]), status=event["status"], end_time=event["time"])


def _experiment(client: MlflowClient, config: TrackingConfig) -> str:
    found = client.get_experiment_by_name(config.experiment)
    if found is not None:
        return found.experiment_id
    from mlflow.exceptions import MlflowException

    try:
        return client.create_experiment(config.experiment, artifact_location=config.artifact_location)
    except MlflowException:  # another process was first
        raced = client.get_experiment_by_name(config.experiment)
        if raced is None:
            raise
        return raced.experiment_id


def quiet_environment() -> None:
    """No telemetry, and a dead server is noticed in seconds; what the user has set is kept."""
    defaults: dict[str, Any] = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
