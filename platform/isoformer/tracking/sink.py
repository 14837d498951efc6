"""The only module that writes to MLflow: takes events, makes client calls with explicit run ids.

A run is found by our own key in the tag `isoformer.run`, never by "the active run": so any process can add to
it, and sending an event twice changes nothing (MLflow keys a metric by name, step, time and value). A key
that this process has just made is not searched for, unless an earlier try may have reached MLflow.
"""

from __future__ import annotations

import logging
import os
import posixpath
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoformer.plain_text import warn_of_plain_text
from isoformer.tracking.config import TrackingConfig
from isoformer.tracking.journal import Event
from isoformer.tracking.merging import RunPart, merged

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Run
    from mlflow.tracking import MlflowClient

RUN_KEY_TAG = "isoformer.run"
CONNECT_SECONDS = 10
CREDENTIALS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"

REFUSED_FOR_GOOD = frozenset(
    {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"}
)
REFUSED_CREDENTIALS = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"})


class RejectedError(Exception):
    """MLflow has understood the event and will never take it."""


class CredentialsError(Exception):
    """The server answers, and does not let us in: with other credentials it may."""


@dataclass
class OpenRun:
    """A run as MLflow knows it. `held`: its values by metric, each with its step; of a run that was opened
    again they are asked for when they are needed, and one that `is_made` here had none.
    """

    id: str
    artifact_uri: str
    running: bool
    is_made: bool = False
    held: dict[str, set[tuple[int, float]]] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run, *, is_made: bool = False) -> OpenRun:
        return cls(run.info.run_id, run.info.artifact_uri, run.info.status == "RUNNING", is_made)


class MlflowSink:
    """Sends events; any exception but RejectedError means: not now, try again later."""

    def __init__(self, config: TrackingConfig) -> None:
        self._config = config
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._runs: dict[str, OpenRun] = {}
        self._tried: set[str] = set()

    def send(self, events: list[Event]) -> None:
        """Events in their order. Where this raises, some of them may have arrived: send all of them again."""
        with self._translated():
            self._connect()
            for part in merged(events):
                self._deliver(part)

    def run_id(self, key: str) -> str:
        """MLflow's id of our run. LookupError where MLflow does not know the run (yet)."""
        return self._located(key).id

    def warm(self) -> None:
        """Import MLflow and make a fresh store's tables (seconds) before the first event needs them."""
        with self._translated():
            self._connect()

    def count_runs(self) -> int:
        """Runs of the experiment, at most 1,000: a question that any store must be able to answer."""
        with self._translated():
            self._connect()
            return len(self._mlflow.search_runs([self._experiment_id], max_results=1000))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """MLflow's errors as ours: refused for good, not let in; all others mean later."""
        quiet_environment()
        from mlflow.exceptions import MlflowException, RestException

        try:
            yield
        except LookupError as error:
            raise RejectedError(str(error)) from error
        except MlflowException as error:
            if error.error_code in REFUSED_CREDENTIALS:
                raise CredentialsError(str(error)) from error
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # another store than the one that we knew
                self._client = None
                self._runs.clear()
            # what is not MLflow's own answer comes from something else at that address, which may go
            is_answer = not self._config.is_server or isinstance(error, RestException)
            if is_answer and error.error_code in REFUSED_FOR_GOOD:
                raise RejectedError(str(error)) from error
            raise
        except OSError as error:  # requests' errors are OSErrors; an artefact's upload raises its HTTPError
            if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
                raise CredentialsError(str(error)) from error
            raise

    def _connect(self) -> None:
        if self._client is not None:
            return
        from mlflow.tracking import MlflowClient

        for name in ("mlflow.store.db.utils", "alembic", "mlflow.tracking"):
            logging.getLogger(name).setLevel(logging.WARNING)
        require_database(self._config)
        if any(os.environ.get(name) for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")):
            warn_of_plain_text(
                "tracking.uri", self._config.shown_uri, "password and token can be read on the way"
            )
        client = MlflowClient(tracking_uri=self._config.resolved_uri)
        self._experiment_id = _experiment(client, self._config)
        self._client = client

    @property
    def _mlflow(self) -> MlflowClient:
        assert self._client is not None, "connect first"
        return self._client

    def _deliver(self, part: RunPart) -> None:
        run = self._located(part.run) if part.start is None else self._opened(part.start, ends=part.end)
        self._log(run, part)
        if part.inputs:
            self._mlflow.log_inputs(run.id, [_dataset_input(event) for event in part.inputs])
        if part.artifacts:
            repository = _repository(run, self._config)
            for event in part.artifacts:
                _upload(event, repository)
        if part.end is not None:
            status, time_ms = part.end["status"], part.end["time"]
            self._mlflow.set_terminated(run.id, status=status, end_time=time_ms)
            run.running = False

    def _located(self, key: str) -> OpenRun:
        if key not in self._runs:
            found = self._search(key)
            if found is None:
                raise LookupError(f"MLflow at {self._config.shown_uri} has no run tagged {RUN_KEY_TAG}={key}")
            self._runs[key] = OpenRun.of(found)
        return self._runs[key]

    def _opened(self, start: Event, *, ends: Event | None) -> OpenRun:
        """The run of a start event: made where it is not there, else open again."""
        key = start["run"]
        is_known_new = start.get("new", False) and key not in self._tried
        self._tried.add(key)
        found = None if is_known_new or key in self._runs else self._search(key)
        if found is not None:
            self._runs[key] = OpenRun.of(found)
        elif key not in self._runs:
            self._runs[key] = OpenRun.of(self._created(start), is_made=True)
        run = self._runs[key]
        if not run.running and ends is None:
            self._mlflow.update_run(run.id, status="RUNNING")
            run.running = True
        return run

    def _search(self, key: str) -> Run | None:
        """The oldest with this key, so that all who ask find the same."""
        runs = self._mlflow.search_runs(
            [self._experiment_id],
            f"tags.`{RUN_KEY_TAG}` = '{key}'",
            max_results=1,
            order_by=["attributes.start_time ASC"],
        )
        return runs[0] if runs else None

    def _created(self, event: Event) -> Run:
        tags = {RUN_KEY_TAG: event["run"], **event["tags"]}
        if event["parent"]:
            tags["mlflow.parentRunId"] = self.run_id(event["parent"])
        return self._mlflow.create_run(
            self._experiment_id, start_time=event["time"], tags=tags, run_name=event["name"]
        )

    def _log(self, run: OpenRun, part: RunPart) -> None:
        """Parameters, tags and metrics in one request (the client splits what is too much for one)."""
        from mlflow.entities import Metric, Param, RunTag

        values = {
            (key, event["step"], value): event["time"]
            for event in reversed(part.metrics)  # of one that comes twice, the earlier
            for key, value in event["values"].items()
            if (event["step"], value) not in self._held(run, key)
        }
        metrics = [Metric(key, value, time, step) for (key, step, value), time in reversed(values.items())]
        params = [Param(key, value) for key, value in part.params.items()]
        tags = [RunTag(key, value) for key, value in part.tags.items()]
        if metrics or params or tags:
            self._mlflow.log_batch(run.id, metrics=metrics, params=params, tags=tags)
        for key, step, value in values:
            run.held[key].add((step, value))

    def _held(self, run: OpenRun, key: str) -> set[tuple[int, float]]:
        """The values that the run has: work that is resumed after a kill repeats steps, which may have been
        sent before, or wait in a journal that was taken over and goes off with them.
        """
        if key not in run.held:
            history = [] if run.is_made else self._mlflow.get_metric_history(run.id, key)
            run.held[key] = {(metric.step, metric.value) for metric in history}
        return run.held[key]


def _dataset_input(event: Event) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return DatasetInput(Dataset(**event["dataset"]), [InputTag("mlflow.data.context", event["context"])])


def _repository(run: OpenRun, config: TrackingConfig) -> Any:
    """Where the run's artefacts go: known from the run, so that MLflow need not be asked again."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(run.artifact_uri, tracking_uri=config.resolved_uri)


def _upload(event: Event, repository: Any) -> None:
    if event["op"] == "file":
        if not os.path.exists(event["file"]):
            raise RejectedError(f"{event['file']} is no longer there")
        repository.log_artifact(event["file"], event["folder"] or None)
        return
    folder, name = posixpath.split(posixpath.normpath(event["path"]))
    with tempfile.TemporaryDirectory(prefix="isoformer-tracking-") as local:
        file = Path(local, name)
        file.write_text(event["text"], encoding="utf-8")
        repository.log_artifact(str(file), folder or None)


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


def require_database(config: TrackingConfig) -> None:
    """Raise at once where a database does not answer: MLflow itself would try on for hours, under a lock."""
    uri = config.resolved_uri
    if config.is_server or uri.startswith("sqlite:"):
        return
    from sqlalchemy import create_engine
    from sqlalchemy.engine import make_url
    from sqlalchemy.pool import NullPool

    takes_timeout = make_url(uri).get_driver_name() in ("psycopg", "psycopg2", "pymysql", "mysqldb")
    options = {"connect_timeout": CONNECT_SECONDS} if takes_timeout else {}
    with create_engine(uri, poolclass=NullPool, connect_args=options).connect():
        pass


def quiet_environment() -> None:
    """No telemetry, and a dead server is noticed in seconds; what the user has set is kept.

    MLflow's client repeats no request by itself: one that timed out may have made a run, which only a search
    can tell.
    """
    defaults: dict[str, Any] = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # a request a run, to print where it is
        "GIT_PYTHON_REFRESH": "quiet",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
