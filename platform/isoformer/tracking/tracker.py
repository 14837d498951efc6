"""What callers use to track a run. Calls return at once; a thread sends events to MLflow behind their back.

    with Tracker(TrackingConfig(folder="work")) as tracker:
        run = tracker.start_run("final", tags=dataset_tags(...), params={"learning_rate": "0.001"})
        tracker.log_metrics(run, {"validation_r2": 0.31}, step=4)
        tracker.end_run(run)

`run` is our own key: it can be handed to another process, which logs to the same run through its own Tracker.
On any rank but zero every call does nothing. A failing server is reported once; events wait in the journal,
and the next tracker on the same folder sends them.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from isoformer.errors import StorageError
from isoformer.tracking.config import TrackingConfig, code_version
from isoformer.tracking.journal import Event, Journal, Refusal, read_outstanding
from isoformer.tracking.shipper import Shipper, Sink, first_line
from isoformer.tracking.sink import MlflowSink
from isoformer.tracking.system import sampled

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
METRIC_KEYS_A_RUN = 20
DIGEST_LIMIT = 36  # of a dataset input, in MLflow's tables

logger = logging.getLogger(__name__)


class Tracker:
    """Rank zero's door to MLflow."""

    def __init__(self, config: TrackingConfig, *, rank: int = 0, sink: Sink | None = None) -> None:
        self.config = config
        self._metric_keys: dict[str, set[str]] = defaultdict(set)
        self._shipper: Shipper | None = None
        self.taken_over = (0, 0)
        self.refusals: tuple[Refusal, ...] = ()
        if config.enabled and rank == 0:
            journal = Journal.create(config.journal_folder)
            self.taken_over = journal.take_over()
            self._shipper = Shipper(sink or MlflowSink(config), journal, config)
            self._shipper.start()

    def start_run(
        self,
        name: str,
        *,
        key: str | None = None,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        is_new: bool = False,
    ) -> str:
        """Open a run and return its key; an existing `key` is opened again. `parent` is the parent's key.

        `is_new` says that nobody can have opened this `key` before (as is clear where none is given): MLflow
        is then not asked for it, which saves a search a run.
        """
        is_new, key = is_new or key is None, key or uuid.uuid4().hex
        stated = {"code_version": code_version(), **(tags or {})}
        event = {"name": name, "parent": parent, "tags": stated, "params": dict(params or {}), "new": is_new}
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

    def log_input(
        self,
        run: str,
        *,
        name: str,
        digest: str,
        source: str,
        context: str = "train",
        details: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """A dataset that the run reads, shown by MLflow as "Datasets used".

        `digest`: its fingerprint, of which MLflow keeps 36 characters. `source`: the URI it lies under.
        `details`: {"schema": …, "profile": …}, either may be missing.
        """
        dataset = {"name": name, "digest": digest[:DIGEST_LIMIT], **_source(source)}
        dataset |= {key: json.dumps(value) for key, value in (details or {}).items()}
        self._put({"op": "input", "run": run, "dataset": dataset, "context": context})

    def system_metrics(self, run: str) -> AbstractContextManager[None]:
        """Samples of processor, memory and GPUs (at most 6 keys) while the block runs; see `system.py`."""
        return sampled(self, run)

    def log_text(self, run: str, text: str, artifact_path: str) -> None:
        """A small artefact (configuration, table) from memory."""
        self._put({"op": "text", "run": run, "text": text, "path": artifact_path})

    def log_file(self, run: str, path: str | Path, *, folder: str = "") -> None:
        """A file as artefact. It is copied before this returns, so that it may be deleted at once."""
        if self._shipper is None:
            return
        try:
            copy = self._shipper.journal.copy_file(Path(path))
        except OSError as error:
            logger.warning("%s cannot be copied (%s): run %s goes without it", path, error, run)
            return
        self._put({"op": "file", "run": run, "file": str(copy), "folder": folder})

    def on_run(self, run: str) -> TrackedRun:
        """One run of this tracker, for code that knows no other."""
        return TrackedRun(self, run)

    def end_run(self, run: str, *, status: RunStatus = "FINISHED") -> None:
        """Close a run."""
        self._put({"op": "end", "run": run, "status": status, "time": _now_ms()})

    @property
    def is_active(self) -> bool:
        """Whether what is logged goes anywhere: not on other ranks, nor where tracking is off or closed."""
        return self._shipper is not None

    @property
    def waiting(self) -> int:
        """Events that MLflow has not taken yet."""
        return self._shipper.waiting if self._shipper is not None else 0

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
        left = shipper.close(self.config.close_seconds)
        self.refusals = tuple(shipper.journal.refusals)
        return left

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
        raise StorageError(f"tracking at {located.shown_uri}: {first_line(error)}") from error
    return f"{located.shown_uri}: experiment {located.experiment!r} holds {runs} run(s)"


@dataclass(frozen=True)
class TrackedRun:
    """A tracker bound to one run."""

    tracker: Tracker
    run: str

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Scalars of one step."""
        self.tracker.log_metrics(self.run, metrics, step=step)

    def log_artifact(self, path: str | Path) -> None:
        """A file, copied at once."""
        self.tracker.log_file(self.run, path)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Add or replace tags."""
        self.tracker.set_tags(self.run, tags)


@dataclass(frozen=True)
class ReplayReport:
    """Events sent, events MLflow refused, journals in use by runs that are alive, events still waiting."""

    sent: int
    refusals: tuple[Refusal, ...]
    in_use: int
    waiting: int

    @property
    def rejected(self) -> int:
        return len(self.refusals)


def replay(config: TrackingConfig, *, sink: Sink | None = None) -> ReplayReport:
    """Send the events of journals that their owners left behind (a dead server, a killed process).

    Every new Tracker does so too; this is for when there is nothing new to track. It takes as long as the
    store takes events.
    """
    if not any(read_outstanding(path) for path in config.journal_folder.glob("*.jsonl")):
        return ReplayReport(sent=0, refusals=(), in_use=0, waiting=0)
    tracker = Tracker(config, sink=sink)
    taken, in_use = tracker.taken_over
    before = taken + 1
    while not tracker.flush() and tracker.waiting < before:
        before = tracker.waiting
    waiting = tracker.close()
    refusals = tracker.refusals
    return ReplayReport(taken - waiting - len(refusals), refusals, in_use, waiting)


def _source(uri: str) -> dict[str, str]:
    """As MLflow's own classes describe where a dataset lies."""
    scheme, separator, _ = uri.partition("://")
    known = scheme in ("s3", "gs", "http", "https")
    kind = scheme if separator and known else "local"
    return {"source_type": kind, "source": json.dumps({"url" if kind.startswith("http") else "uri": uri})}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
