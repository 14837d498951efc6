"""The thread that takes events from callers and hands them to a sink, in order, whatever the sink does.

Events are collected for a moment and go off together, so that the sink can merge what belongs to one run. A
sink that fails twice running is reported once and tried again every `retry_seconds`; meanwhile callers go on,
and the journal holds what waits.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from itertools import islice
from typing import Protocol

from isoformer.config import without_password
from isoformer.telemetry import count, show
from isoformer.tracking.config import TrackingConfig
from isoformer.tracking.journal import Event, Journal
from isoformer.tracking.sink import CREDENTIALS, CredentialsError, RejectedError

EVENTS_A_BATCH = 1000
SOON_SECONDS = 1.0  # one failure is no outage: a server closes idle connections

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Where events go. Any exception but RejectedError means: later."""

    def warm(self) -> None: ...
    def send(self, events: list[Event]) -> None: ...


class Shipper(threading.Thread):
    """Takes events from callers and hands them to the sink, in order, until told to stop."""

    def __init__(self, sink: Sink, journal: Journal, config: TrackingConfig) -> None:
        super().__init__(name="isoformer-tracking", daemon=True)
        self.journal = journal
        self._sink = sink
        self._config = config
        self._pending: deque[Event] = deque(journal.outstanding)
        self._changed = threading.Condition()
        self._closing = False
        self._flushing = 0
        self._outages = 0
        self._failures_running = 0
        self._said = ""

    @property
    def waiting(self) -> int:
        """Events that MLflow has not taken yet."""
        return len(self._pending)

    def put(self, event: Event) -> None:
        with self._changed:
            self._pending.append(self.journal.write(event))
            if len(self._pending) in (1, EVENTS_A_BATCH):  # else the thread is awake, or need not be
                self._changed.notify_all()

    def flush(self, timeout_seconds: float) -> bool:
        with self._changed:
            outages = self._outages
            self._flushing += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._pending or self._outages > outages, timeout_seconds)
            self._flushing -= 1
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
                    left, self._config.shown_uri, self.journal.path,
                )  # fmt: skip
            self.journal.close()
        return left

    def run(self) -> None:
        self._attempt([], warm=True)
        while batch := self._next_batch():
            is_sent = self._attempt(batch)
            show("isoformer_tracking_waiting", self.waiting)
            if not is_sent and not self._pause():
                return

    def _next_batch(self) -> list[Event]:
        """The events that wait, at most so many; empty when the work is over."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._pending) or self._closing)
            self._changed.wait_for(self._is_time, self._config.batch_seconds)
            return list(islice(self._pending, EVENTS_A_BATCH))

    def _is_time(self) -> bool:
        return self._closing or self._flushing > 0 or len(self._pending) >= EVENTS_A_BATCH

    def _pause(self) -> bool:
        """Wait after a failure; False where there is no more time to try again."""
        with self._changed:
            retry_seconds = self._config.retry_seconds
            if self._failures_running == 1:
                self._changed.wait_for(lambda: False, min(SOON_SECONDS, retry_seconds))
                return True
            if self._closing:
                return False
            self._changed.wait_for(lambda: self._closing, retry_seconds)
            return True

    def _attempt(self, batch: list[Event], *, warm: bool = False) -> bool:
        try:
            self._sink.warm() if warm else self._sink.send(batch)
        except RejectedError as error:
            if len(batch) > 1:  # find the one that is refused
                middle = len(batch) // 2
                return self._attempt(batch[:middle]) and self._attempt(batch[middle:])
            self._rejected(batch, without_password(str(error)))
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
            self._failures_running = 0
            if self._said and batch:
                logger.warning("tracking at %s is back: sending what had waited", self._config.shown_uri)
                self._said = ""
            self.journal.acknowledge(batch)
            self._forget(batch)

    def _rejected(self, batch: list[Event], reason: str) -> None:
        for event in batch:
            logger.warning(
                "MLflow refused a tracking event (%s, run %s): %s", event["op"], event["run"], reason
            )
        with self._changed:
            self._failures_running = 0
            for event in batch:
                self.journal.reject(event, reason)
                count("isoformer_tracking_refused_total")
            self._forget(batch)

    def _failed(self, error: Exception) -> None:
        with self._changed:
            self._failures_running += 1
            if self._failures_running == 1:
                return
            self._outages += 1
            problem = (
                f"refuses the credentials ({CREDENTIALS}: {first_line(error)})"
                if isinstance(error, CredentialsError)
                else f"does not answer ({first_line(error)})"
            )
            kind = problem.partition(" (")[0]
            if self._said != kind:
                logger.warning(
                    "tracking at %s %s; the work goes on, events wait in %s",
                    self._config.shown_uri, problem, self.journal.path,
                )  # fmt: skip
            self._said = kind
            self._changed.notify_all()

    def _forget(self, batch: list[Event]) -> None:
        for _ in batch:
            self._pending.popleft()
        self._changed.notify_all()


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says, no password in it."""
    text = without_password(str(error)).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__
