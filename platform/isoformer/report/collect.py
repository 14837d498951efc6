"""Read what the stages left under a root; what is not there, or cannot be read, is noted and not made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from isoformer.errors import IsoformerError
from isoformer.manifest import MANIFEST_KEY, Manifest, read_manifest
from isoformer.scores import ScoreTable
from isoformer.storage import Storage, open_storage
from isoformer.training.runs import RunFolder, RunSettings, run_names

if TYPE_CHECKING:
    from isoformer.evaluate import Evaluation
    from isoformer.metrics import Interval

EMBED_REPORT_KEY = "reports/embed.json"
INTERVAL_DRAWS = 300
LARGEST_DRAWN = 1e100

T = TypeVar("T")


@dataclass
class Found:
    """Everything the report shows. A part that is None has its reason in `missing`."""

    root: str
    run: str | None
    study: str | None
    manifest: Manifest | None = None
    embeddings: list[dict[str, Any]] = field(default_factory=list)
    embed_report: dict[str, Any] | None = None
    settings: RunSettings | None = None
    summary: dict[str, Any] | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    evaluation: Evaluation | None = None
    tissue_intervals: dict[str, dict[str, Interval]] = field(default_factory=dict)
    ablation: ScoreTable | None = None
    sweep: dict[str, Any] | None = None
    sweep_page: bool = False
    missing: dict[str, str] = field(default_factory=dict)


def collect(root: str, *, run: str | None, study: str | None) -> Found:
    """Read all parts. `run` and `study` null: the only one there is."""
    storage = open_storage(root)
    run = run or _only(run_names(storage))
    study = study or _only(_study_names(storage))
    found = Found(root=root, run=run, study=study)
    found.manifest = _part(found, "data", MANIFEST_KEY, storage, lambda _: read_manifest(storage))
    found.embeddings = _embeddings(found, storage)
    found.embed_report = _part(found, "plan", EMBED_REPORT_KEY, storage, json.loads)
    if run is None:
        found.missing["run"] = (
            f"no run was named, and there is not exactly one: {run_names(storage) or 'none'}"
        )
    else:
        _read_run(found, storage, RunFolder(storage, run))
    if study is None:
        found.missing["sweep"] = (
            f"no study was named, and there is not exactly one: {_study_names(storage) or 'none'}"
        )
    else:
        found.sweep = _part(found, "sweep", f"studies/{study}/trials.json", storage, json.loads)
        found.sweep_page = storage.exists(sweep_page_key(study))
    return found


def sweep_page_key(study: str) -> str:
    """Where the page of a study lies under a root."""
    return f"studies/{study}/report.html"


def _read_run(found: Found, storage: Storage, folder: RunFolder) -> None:
    from isoformer.evaluate import Evaluation

    def read(part: str, name: str, parse: Callable[[bytes], T]) -> T | None:
        return _part(found, part, folder.prefix + name, storage, parse)

    found.settings = read("run", "config.yaml", lambda _: folder.settings())
    found.summary = read("run", "run.json", json.loads)
    found.history = read("curves", "metrics.jsonl", lambda _: folder.history()) or []
    found.evaluation = read("scores", "evaluation.json", Evaluation.model_validate_json)
    found.tissue_intervals = read("tissues", "predictions.parquet", lambda _: _intervals(folder)) or {}
    found.ablation = read("ablation", "ablation.json", ScoreTable.model_validate_json)


def _part(found: Found, part: str, key: str, storage: Storage, parse: Callable[[bytes], T]) -> T | None:
    if not storage.exists(key):
        found.missing.setdefault(part, f"{key} is not there")
        return None
    try:
        return parse(storage.read_bytes(key))
    except (IsoformerError, ValueError, KeyError) as error:  # pydantic's and json's errors are ValueErrors
        found.missing[part] = f"{key} cannot be read: {str(error).splitlines()[0]}"
        return None


def _embeddings(found: Found, storage: Storage) -> list[dict[str, Any]]:
    keys = [key for key in storage.list("embeddings/") if key.endswith("/manifest.json")]
    if not keys:
        found.missing["encoders"] = "embeddings/ holds no finished dataset"
    read = [_part(found, "encoders", key, storage, json.loads) for key in keys]
    return [manifest for manifest in read if manifest is not None]


def _intervals(folder: RunFolder) -> dict[str, dict[str, Interval]]:
    """Gene-level bootstrap intervals of each tissue's scores, from the stored predictions."""
    import numpy as np

    from isoformer.metrics import gene_bootstrap
    from isoformer.parquet_file import open_parquet

    with folder.storage.open_input(folder.prefix + "predictions.parquet") as file:
        table = open_parquet(file).read()
    names = json.loads(table.schema.metadata[b"target_names"])
    matrix = {
        name: table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, len(names))
        for name in ("prediction", "target", "target_mask")
    }
    genes = np.array(table["gene_id"].to_pylist())
    return {
        tissue: gene_bootstrap(
            matrix["target"][:, [k]], matrix["prediction"][:, [k]], genes, matrix["target_mask"][:, [k]],
            draws=INTERVAL_DRAWS,
        )
        for k, tissue in enumerate(names)
    }  # fmt: skip


def _study_names(storage: Storage) -> list[str]:
    return sorted(key.split("/")[1] for key in storage.list("studies/") if key.endswith("/trials.json"))


def _only(names: list[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def finite(value: object) -> bool:
    """Whether a value can be drawn: an axis cannot reach the ends of what a float can hold."""
    return isinstance(value, int | float) and abs(value) < LARGEST_DRAWN
