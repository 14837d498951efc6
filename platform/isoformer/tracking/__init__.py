"""MLflow runs that survive their server, and never hold up the work they describe.

    config  where the runs go (a local SQLite store by default) and the command that opens the UI
    tracker what callers use: start_run, log_metrics, log_input, log_text, log_file, system_metrics, end_run
    journal every event is written to a local JSONL file before anything else happens to it
    shipper the thread that hands events on; merging puts together what goes in one request
    links   the pages of runs in MLflow's UI
    status  what waits in the journals
    sink    the only module that writes to MLflow, on a background thread

An event that MLflow has taken is acknowledged in the journal; a journal with nothing outstanding is deleted.
What a dead server (or a killed process) left outstanding is sent by `replay`.
"""

from isoformer.tracking.config import (
    TrackingConfig,
    code_version,
    dataset_tags,
    flat_params,
    local_path,
    open_line,
    run_key,
)
from isoformer.tracking.datasets import log_dataset
from isoformer.tracking.links import run_links
from isoformer.tracking.scores import log_ablation, log_evaluation
from isoformer.tracking.status import TrackingStatus, tracking_status
from isoformer.tracking.tracker import ReplayReport, TrackedRun, Tracker, probe, replay

__all__ = [
    "ReplayReport",
    "TrackedRun",
    "Tracker",
    "TrackingConfig",
    "TrackingStatus",
    "code_version",
    "dataset_tags",
    "flat_params",
    "local_path",
    "log_ablation",
    "log_dataset",
    "log_evaluation",
    "open_line",
    "probe",
    "replay",
    "run_key",
    "run_links",
    "tracking_status",
]
