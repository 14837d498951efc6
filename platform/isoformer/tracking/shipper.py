"""The thread that takes events from callers and hands them to a sink, in order, whatever the sink does.

A sink that fails is reported once and tried again every `retry_seconds`; meanwhile callers go on, and the
journal holds what waits.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import Protocol

from isoformer.tracking.config import TrackingConfig
from isoformer.tracking.journal import Event, Journal
from isoformer.tracking.sink import RejectedError

METRIC_EVENTS_A_BATCH = 200

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Where events go. Any exception but RejectedError means: later."""

    def warm(self) -> None: ...
    def send(self, events: list[Event]) -> None: ...


class Shipper(threading.Thread):
    """Takes events from callers and hands them to the sink, in order, until told to stop."""

    def __init__(self, sink: Sink, journal: Journal, config: TrackingConfig) -> None:
        super().__init__(name="isoformer-tracking", daemon=True)
        self._sink = sink
        self._journal = journal
        self._config = config
        self._pending: deque[Event] = deque(journal.outstanding)
        self._changed = threading.Condition()
        self._closing = False
        self._failures = 0
        self._down = False

    @property
    def rejected(self) -> int:
        """Events that MLflow refused for good."""
        return self._journal.rejected

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
                is_last_try = self._closing
                batch = _next_batch(self._pending)
            if not batch:
                return
            if self._attempt(batch):
                continue
            if is_last_try:
                return
            with self._changed:
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
                    self._config.shown_uri, first_line(error), self._journal.path,
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


def first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__
