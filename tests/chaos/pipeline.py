"""The pipeline that is disturbed: its settings, its verbs as commands, and all that it leaves behind.

Real data (some genes of the shipped sample), small encoders, everything that a cluster's run has: a bucket,
a tracking server by address, a study in PostgreSQL, checkpoints after every epoch.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from isoformer.demo_data import demo_paths
from isoformer.storage import Storage
from isoformer.sweep.study import open_storage_at
from isoformer.tracking import TrackingConfig

GENES: Final = 60
RUN, STUDY = "final", "chaos"
VERBS: Final[dict[str, tuple[str, ...]]] = {
    "prepare": (),
    "embed": (),
    "train": ("--resume",),
    "sweep": ("--resume",),
}
"""In their order; each is run again with the same command until it is done."""
CLOCK: Final = ("wait_share", "transcripts_per_second", "device_hours")
"""Metrics that are another value in every run."""
ONLY_IN_A_FOLDER: Final = ("/.lock", "/report.html")
"""Ends of names under a root in a folder that one on a bucket has not."""
CLOCK_OF_TRIALS: Final = ("seconds", "device_seconds", "training_seconds", "started", "ended", "run")


@dataclass(frozen=True)
class Place:
    """Where one pipeline leaves its work. `storage` reads the root without any proxy."""

    root: str
    storage: Storage
    tracking: TrackingConfig
    study_url: str
    settings: Path


@dataclass(frozen=True)
class Results:
    """All that must be equal, whatever happened: objects by digest, epochs, trials, tracked runs."""

    objects: dict[str, str]
    names: list[str]
    epochs: list[dict[str, float]]
    trials: list[dict[str, Any]]
    tracked: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Peace:
    """What nobody disturbed: its results, and the requests to the storage that each verb took."""

    results: Results
    requests: dict[str, int]


def cut_sources(folder: Path) -> dict[str, Any]:
    """The settings of prepare for some genes of the shipped sample."""
    paths = demo_paths()
    lines = gzip.decompress(Path(paths["annotation"]).read_bytes()).decode().splitlines(keepends=True)
    kept, genes = [], list[str]()
    for line in lines:
        gene = line.partition('gene_id "')[2].partition('"')[0]
        if gene and gene not in genes:
            genes.append(gene)
        if len(genes) <= GENES:
            kept.append(line)
    annotation = folder / "annotation.gtf.gz"
    annotation.write_bytes(gzip.compress("".join(kept).encode(), mtime=0))
    return {**paths, "annotation": str(annotation), "shards": 8, "dna_window_bases": 6144}


def write_settings(
    path: Path, root: str, sources: dict[str, Any], tracking: TrackingConfig, study_url: str
) -> Path:
    """The settings of every verb. `study_url` may hold no password: it is written down."""
    encoders = [("esm2-tiny", "pooled"), ("esm2-tiny", "bins:4"), ("composition-rna", "pooled"),
                ("composition-rna", "bins:4"), ("composition-dna", "bins:4")]  # fmt: skip
    settings = {
        "root": root,
        "run": RUN,
        "prepare": sources,
        "embed": {
            "encoders": [{"name": name, "resolution": resolution} for name, resolution in encoders],
            "actors": 2, "threads_per_actor": 1, "token_budget": 2048,
            "most_failures": 20, "stall_seconds": 60,
        },
        "train": {
            "epochs": 16, "patience": 16, "max_failures": 8,
            "model": {"width": 16, "heads": 2, "modalities": ["rna", "protein"]},
        },
        "sweep": {
            "study": STUDY, "storage": study_url, "trials": 6, "epochs": 10, "grace_epochs": 4,
            "variants": "fusion", "concurrent": 2, "checkpoint_seconds": 0.0, "max_failures": 8,
        },
        "tracking": tracking.model_dump(),
    }  # fmt: skip
    path.write_text(yaml.safe_dump(settings))
    return path


def results(place: Place) -> Results:
    """Everything there is, but for what the clock says."""
    storage = place.storage
    names = [key for key in storage.list() if not key.endswith(ONLY_IN_A_FOLDER)]
    data = [key for key in names if key.startswith(("transcripts/", "embeddings/", "reference/"))]
    data += [f"runs/{RUN}/checkpoint/model.safetensors"]
    lines = storage.read_bytes(f"runs/{RUN}/metrics.jsonl").decode().splitlines()
    rows = json.loads(storage.read_bytes(f"studies/{STUDY}/trials.json"))["trials"]
    return Results(
        objects={key: hashlib.sha256(storage.read_bytes(key)).hexdigest() for key in data},
        names=names,
        epochs=[_without(json.loads(line), CLOCK) for line in lines],
        trials=[_without(row, CLOCK_OF_TRIALS) for row in rows],
        tracked=tracked(place.tracking),
    )


def require_equal(found: Results, expected: Results) -> None:
    """AssertionError that names the first difference."""
    for part, ours in asdict(found).items():
        theirs = getattr(expected, part)
        if isinstance(ours, dict):
            assert sorted(ours) == sorted(theirs), part
            for name in ours:
                assert ours[name] == theirs[name], (part, name)
        assert ours == theirs, (part, ours, theirs)


def require_study_as_told(place: Place, found: Results) -> None:
    """The database itself holds each trial once, with the scores that the table says."""
    storage = open_storage_at(place.study_url)
    (study,) = storage.get_all_studies()
    trials = storage.get_all_trials(study._study_id)
    ours = [(t.number, t.state.name.lower(), sorted(t.intermediate_values.items())) for t in trials]
    assert ours == [
        (row["number"], {"failed": "fail"}.get(row["state"], row["state"]), [tuple(p) for p in row["curve"]])
        for row in found.trials
    ]


def tracked(config: TrackingConfig) -> dict[str, dict[str, Any]]:
    """Every run by name: status, parameters, and each metric's points. AssertionError where a name is
    taken twice, or a metric has two values at one step.
    """
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=config.resolved_uri)
    experiment = client.get_experiment_by_name(config.experiment)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    runs = {run.info.run_name: run for run in found}
    assert len(runs) == len(found), sorted(run.info.run_name for run in found)
    return {
        name: {
            "status": run.info.status,
            "params": run.data.params,
            "metrics": {key: _points(client, run.info.run_id, key) for key in sorted(run.data.metrics)},
        }
        for name, run in runs.items()
    }


def _points(client: Any, run: str, key: str) -> list[Any]:
    points = sorted((one.step, one.value) for one in client.get_metric_history(run, key))
    steps = [step for step, _ in points]
    if key in CLOCK:
        return sorted(set(steps))  # an epoch that is done again takes another time
    assert len(set(steps)) == len(steps), f"{key}: two values at one step: {points}"
    return points


def _without(row: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}
