"""What callers use to track a run. Calls return at once; a thread sends events to MLflow behind their back.

    with Tracker(TrackingConfig(folder="work")) as tracker:
        run = tracker.start_run("final", tags=dataset_tags(...), params={"learning_rate": "0.001"})
        tracker.log_metrics(run, {"validation_r2": 0.31}, step=4)
        tracker.end_run(run)

`run` is our own key: it can be handed to another process, which logs to the same run through its own Tracker.
On any rank but zero every call does nothing. A failing server is reported once; events wait in the journal.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, Self

from isoformer.errors import StorageError
from isoformer.tracking.config import TrackingConfig
from isoformer.tracking.journal import Event, Journal, read_outstanding
from isoformer.tracking.sink import MlflowSink, RejectedError

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
METRIC_KEYS_A_RUN = 20
METRIC_EVENTS_A_BATCH = 200

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Where events go. Any exception but RejectedError means: later."""

    def warm(self) -> None: ...
    def send(self, events: list[Event]) -> None: ...


class Tracker:
    """Rank zero's door to MLflow."""

    def __init__(self, config: TrackingConfig, *, rank: int = 0, sink: Sink | None = None) -> None:
        self.config = config
        self._metric_keys: dict[str, set[str]] = defaultdict(set)
        self._shipper: _Shipper | None = None
        if config.enabled and rank == 0:
            journal = Journal.create(config.journal_folder)
            self._shipper = _Shipper(sink or MlflowSink(config), journal, config)
            self._shipper.start()

    def start_run(
        self,
        name: str,
        *,
        key: str | None = None,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> str:
        """Open a run and return its key; an existing `key` is opened again. `parent` is the parent's key."""
        key = key or uuid.uuid4().hex
        event = {"name": name, "parent": parent, "tags": dict(tags or {}), "params": dict(params or {})}
        self._put({"op": "start", "run": key, "time": _now_ms(), **event})
        return key

    def log_metrics(self, run: str, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Scalars of one step. ValueError beyond 20 different keys a run: tables belong in artefacts."""
        keys = self._metric_keys[run]
        keys.update(metrics)
        if len(keys) > METRIC_KEYS_A_RUN:
            raise ValueError(
                f"run {run}: {len(keys)} metric keys, allowed are {METRIC_KEYS_A_RUN}: {sorted(keys)}"
            )
        values = {key: float(value) for key, value in metrics.items()}
        self._put({"op": "metrics", "run": run, "time": _now_ms(), "step": step, "values": values})

    def set_tags(self, run: str, tags: Mapping[str, str]) -> None:
        """Add or replace tags."""
        self._put({"op": "tags", "run": run, "tags": dict(tags)})

    def log_text(self, run: str, text: str, artifact_path: str) -> None:
        """A small artefact (configuration, table) from memory."""
        self._put({"op": "text", "run": run, "text": text, "path": artifact_path})

    def log_file(self, run: str, path: str | Path, *, folder: str = "") -> None:
        """A file as artefact. It must stay where it is until it has been sent."""
        self._put({"op": "file", "run": run, "file": str(Path(path).resolve()), "folder": folder})

    def end_run(self, run: str, *, status: RunStatus = "FINISHED") -> None:
        """Close a run."""
        self._put({"op": "end", "run": run, "status": status, "time": _now_ms()})

    def flush(self, timeout_seconds: float | None = None) -> bool:
        """Wait until MLflow has everything; False where it has not, or does not answer."""
        if self._shipper is None:
            return True
        return self._shipper.flush(timeout_seconds or self.config.close_seconds)

    def close(self) -> int:
        """Send what can be sent and stop. Returns the number of events left in the journal."""
        if self._shipper is None:
            return 0
        shipper, self._shipper = self._shipper, None
        return shipper.close(self.config.close_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _put(self, event: Event) -> None:
        if self._shipper is not None:
            self._shipper.put(event)


def probe(config: TrackingConfig, root: str) -> str:
    """Ask the store one question; returns what it said. StorageError where it does not answer."""
    located = config.for_root(root)
    if not config.enabled:
        return "tracking is switched off"
    try:
        runs = MlflowSink(located).count_runs()
    except Exception as error:  # MLflow's, a driver's or the network's: all mean the same to the asker
        raise StorageError(f"tracking at {located.shown_uri}: {_first_line(error)}") from error
    return f"{located.shown_uri}: experiment {located.experiment!r} holds {runs} run(s)"


@dataclass(frozen=True)
class ReplayReport:
    """Events sent, events MLflow refused, journals in use by runs that are alive, events still waiting."""

    sent: int
    rejected: int
    in_use: int
    waiting: int


def replay(config: TrackingConfig, *, sink: Sink | None = None) -> ReplayReport:
    """Send the events of journals that their owners left behind (a dead server, a killed process)."""
    sent = rejected = in_use = waiting = 0
    paths = sorted(config.journal_folder.glob("*.jsonl")) if config.journal_folder.is_dir() else []
    for path in paths:
        if not read_outstanding(path):
            continue
        journal = Journal.adopt(path)
        if journal is None:
            in_use += 1
            continue
        backlog = journal.outstanding
        shipper = _Shipper(sink or MlflowSink(config), journal, config, backlog=backlog)
        shipper.start()
        left = shipper.close(config.close_seconds)
        sent += len(backlog) - left - journal.rejected
        rejected, waiting = rejected + journal.rejected, waiting + left
    return ReplayReport(sent=sent, rejected=rejected, in_use=in_use, waiting=waiting)


class _Shipper(threading.Thread):
    """Takes events from callers and hands them to the sink, in order, until told to stop."""

    def __init__(
        self, sink: Sink, journal: Journal, config: TrackingConfig, *, backlog: list[Event] | None = None
    ) -> None:
        super().__init__(name="isoformer-tracking", daemon=True)
        self._sink = sink
        self._journal = journal
        self._config = config
        self._pending: deque[Event] = deque(backlog or [])
        self._changed = threading.Condition()
        self._closing = False
        self._failures = 0
        self._down = False

    def put(self, event: Event) -> None:
        with self._changed:
            self._pending.append(self._journal.write(event))
            self._changed.notify_all()

    def flush(self, timeout_seconds: float) -> bool:
        with self._changed:
            failures = self._failures
            self._changed.wait_for(lambda: not self._pending or self._failures > failures, timeout_seconds)
            return not self._pending

    def close(self, timeout_seconds: float) -> int:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self.join(timeout_seconds)
        with self._changed:
            left = len(self._pending)
            if left:
                logger.warning(
                    "%d tracking events were not delivered to %s; they are kept in %s",
                    left, self._config.shown_uri, self._journal.path,
                )  # fmt: skip
            self._journal.close()
        return left

    def run(self) -> None:
        self._attempt([], warm=True)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._pending) or self._closing)
                batch = _next_batch(self._pending)
            if not batch:
                return
            if self._attempt(batch):
                continue
            with self._changed:
                if self._closing:
                    return
                self._changed.wait_for(lambda: self._closing, self._config.retry_seconds)

    def _attempt(self, batch: list[Event], *, warm: bool = False) -> bool:
        try:
            self._sink.warm() if warm else self._sink.send(batch)
        except RejectedError as error:
            if len(batch) > 1:  # find the one that is refused
                return all(self._attempt([event]) for event in batch)
            self._rejected(batch, str(error))
        except (
            Exception
        ) as error:  # the one place: nothing that tracking meets may reach the work it describes
            self._failed(error)
            return False
        else:
            self._delivered(batch)
        return True

    def _delivered(self, batch: list[Event]) -> None:
        with self._changed:
            if self._down and batch:
                logger.warning("tracking at %s is back: sending what had waited", self._config.shown_uri)
                self._down = False
            self._journal.acknowledge(batch)
            self._forget(batch)

    def _rejected(self, batch: list[Event], reason: str) -> None:
        logger.warning(
            "MLflow refused a tracking event (%s, run %s): %s", batch[0]["op"], batch[0]["run"], reason
        )
        with self._changed:
            for event in batch:
                self._journal.reject(event, reason)
            self._forget(batch)

    def _failed(self, error: Exception) -> None:
        with self._changed:
            self._failures += 1
            if not self._down:
                logger.warning(
                    "tracking at %s does not answer (%s); the work goes on, events wait in %s",
                    self._config.shown_uri, _first_line(error), self._journal.path,
                )  # fmt: skip
            self._down = True
            self._changed.notify_all()

    def _forget(self, batch: list[Event]) -> None:
        for _ in batch:
            self._pending.popleft()
        self._changed.notify_all()


def _next_batch(pending: deque[Event]) -> list[Event]:
    """The first event, or as many metric events as stand together at the front."""
    batch: list[Event] = []
    for event in pending:
        if batch and (event["op"] != "metrics" or len(batch) == METRIC_EVENTS_A_BATCH):
            break
        batch.append(event)
        if event["op"] != "metrics":
            break
    return batch


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
