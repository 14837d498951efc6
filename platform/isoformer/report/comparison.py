"""Finished runs set side by side: what each one is, how it scored, and whether that can be compared.

In: run folders under a root (`training/runs.py`), with evaluation.json where the run was evaluated. Out: a
`Comparison`, which `compare_page` draws and the command line prints. The first run is the one that the others
are held against.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from isoformer.errors import InputError, StorageError
from isoformer.evaluate import EVALUATION_KEY, Evaluation
from isoformer.metrics import SCORES
from isoformer.scores import Score
from isoformer.storage import Storage
from isoformer.training.runs import RunFolder, RunSettings, run_names, without_nan
from isoformer.training.seeds import is_seed_set, read_seed_runs

NAMES_SHOWN = 30


@dataclass(frozen=True)
class ComparedRun:
    """One finished run; `evaluation` is None where it was not evaluated."""

    name: str
    settings: RunSettings
    summary: dict[str, Any]
    history: list[dict[str, float]]
    evaluation: Evaluation | None

    @property
    def best(self) -> dict[str, float]:
        """Metrics of the kept epoch."""
        return self.history[self.summary["best_epoch"]]

    def score(self, name: str) -> Score | None:
        """Of the run's model in its evaluation, with the interval over genes."""
        return None if self.evaluation is None else getattr(self.evaluation.table.rows[0], name)

    @property
    def tissues(self) -> dict[str, float | None]:
        """R² of the run's model by tissue; empty without an evaluation."""
        if self.evaluation is None:
            return {}
        model = self.evaluation.table.rows[0]
        return {
            one.tissue: one.r2
            for one in self.evaluation.per_tissue
            if (one.name, one.method) == (model.name, model.method)
        }

    def to_json(self) -> dict[str, Any]:
        scores = {name: score.model_dump() for name in SCORES if (score := self.score(name)) is not None}
        return {
            "run": self.name,
            "split": self.evaluation.split if self.evaluation else None,
            "scores": scores or None,
            "validation": {name: value for name, value in self.best.items() if name.startswith("val_")},
            "best_epoch": self.summary["best_epoch"],
            "epochs": self.summary["epochs"],
            "parameters": self.summary["parameters"],
            "seconds": self.summary["seconds"],
            "data_fingerprint": self.settings.data_fingerprint,
            "tissues": self.tissues,
        }


@dataclass(frozen=True)
class Comparison:
    """Runs, what makes their scores not comparable (sentences), and the configuration keys that differ."""

    runs: tuple[ComparedRun, ...]
    unfair: tuple[str, ...]
    configuration: dict[str, tuple[str, ...]]

    def differences(self) -> dict[str, dict[str, float | None]]:
        """R² by tissue of each further run minus the first run's; null where either is undefined."""
        first, *others = self.runs
        return {
            run.name: {tissue: _difference(value, first.tissues[tissue])
                       for tissue, value in run.tissues.items() if tissue in first.tissues}
            for run in others if run.tissues
        }  # fmt: skip

    def score_table(self) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
        """Columns and rows for the terminal."""
        titles = ("R² [95%]", "Spearman [95%]", "validation R²", "parameters", "seconds")
        rows: list[tuple[object, ...]] = []
        for run in self.runs:
            cells = [_score_text(run.score(name)) for name in ("r2", "spearman")]
            validation = run.best.get("val_r2", math.nan)
            numbers = (run.summary["parameters"], float(run.summary["seconds"]))
            rows.append((run.name, *cells, "–" if math.isnan(validation) else f"{validation:.3f}", *numbers))
        return ("run", *titles), rows

    def to_json(self) -> dict[str, Any]:
        names = [run.name for run in self.runs]
        configuration = {
            key: dict(zip(names, values, strict=True)) for key, values in self.configuration.items()
        }
        runs = [run.to_json() for run in self.runs]
        return without_nan({"runs": runs, "unfair": list(self.unfair), "configuration": configuration})


def compare(storage: Storage, names: Sequence[str]) -> Comparison:
    """Read the runs. InputError for fewer than two different ones; StorageError, with the runs there are,
    for a name that is no run, and for one that is not finished or cannot be read.
    """
    if len(names) < 2 or len(set(names)) != len(names):
        raise InputError("a comparison needs two different runs or more", field="runs", value=list(names))
    there = run_names(storage)
    runs = tuple(_read(storage, name, there) for name in names)
    return Comparison(runs, tuple(_unfair(runs)), _configuration(runs))


def _read(storage: Storage, name: str, there: Sequence[str]) -> ComparedRun:
    if name not in there:
        if "/" not in name and is_seed_set(storage, name):
            listed = ", ".join(read_seed_runs(storage, name))
            raise StorageError(f"{storage.uri}/runs/{name}: is a set of seeds, not a run; its runs: {listed}")
        listed = ", ".join(there[:NAMES_SHOWN]) or "none"
        more = f" and {len(there) - NAMES_SHOWN} more" if len(there) > NAMES_SHOWN else ""
        raise StorageError(f"{storage.uri}/runs/{name}: there is no such run; there are: {listed}{more}")
    folder = RunFolder(storage, name)
    return ComparedRun(name, folder.settings(), folder.summary(), folder.history(), _evaluation(folder))


def _evaluation(folder: RunFolder) -> Evaluation | None:
    key = folder.prefix + EVALUATION_KEY
    if not folder.storage.exists(key):
        return None
    try:
        return Evaluation.model_validate_json(folder.storage.read_bytes(key))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StorageError(f"{folder.storage.uri}/{key}: cannot be read: {where}: {first['msg']}") from None


def _unfair(runs: Sequence[ComparedRun]) -> list[str]:
    """Why scores of these runs do not compare; empty where they do."""
    scored = [run for run in runs if run.evaluation is not None]
    found = [
        *_differing(runs, "they were trained on different datasets", lambda r: r.settings.data_fingerprint),
        *_differing(runs, "their labels differ", lambda r: r.settings.label_provenance),
        *_differing(scored, "they were scored on different splits", lambda r: _scored(r)[0]),
        *_differing(scored, "they were scored on different numbers of transcripts", lambda r: _scored(r)[1]),
        *_differing(runs, "their validation genes were drawn differently", _validation),
    ]
    for run in scored:
        if run.evaluation and run.evaluation.run_fingerprint != run.settings.fingerprint:
            found.append(f"{run.name} was trained again since it was evaluated")
    return found


def _differing(runs: Sequence[ComparedRun], what: str, of: Callable[[ComparedRun], str]) -> list[str]:
    """One sentence that says who has what, or none where all have the same."""
    groups: dict[str, list[str]] = {}
    for run in runs:
        groups.setdefault(of(run), []).append(run.name)
    if len(groups) < 2:
        return []
    listed = [f"{value} ({', '.join(names)})" for value, names in groups.items()]
    return [f"{what}: {'; '.join(listed)}"]


def _scored(run: ComparedRun) -> tuple[str, str]:
    assert run.evaluation is not None
    row = run.evaluation.table.rows[0]
    return run.evaluation.split, f"{row.transcripts} of {row.genes} genes"


def _validation(run: ComparedRun) -> str:
    """The dataset's validation genes, or those that a seed drew."""
    train = run.settings.train
    if train.validation == "dataset":
        return "the dataset's"
    return f"{train.validation_fraction:g} of the train genes by seed {train.seed}"


def _configuration(runs: Sequence[ComparedRun]) -> dict[str, tuple[str, ...]]:
    """Dotted keys whose values are not the same in all runs; a dash where a run has no such key."""
    own = {"run", "fingerprint"}
    flat = [_flat(run.settings.model_dump(mode="json", exclude=own)) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = {key: tuple(one.get(key, "–") for one in flat) for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return flat


def _score_text(score: Score | None) -> str:
    if score is None:
        return "not evaluated"
    if score.value is None or score.low is None or score.high is None:
        return "undefined" if score.value is None else f"{score.value:.3f}"
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _difference(value: float | None, first: float | None) -> float | None:
    return None if value is None or first is None else value - first
