"""A study as a sweep leaves it: invented, seeded, and as awkward as a real one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from isoformer.schema import TISSUES

LABELS = "measured GTEx gene mean TPM <of the principal transcript>"
FUSIONS = ["cross_attention", "concat", "perceiver_shared", "perceiver_per_modality", "c_abstractor"]
SKILL = dict(zip(FUSIONS, (0.06, 0.0, 0.04, 0.02, -0.02), strict=True))
ERROR = 'RuntimeError: <b>out of memory</b> & "lost" worker\'s node' + " at block <7>" * 80
SPACE: dict[str, dict[str, Any]] = {
    "fusion": {"path": "model.fusion", "choices": FUSIONS},
    "width": {"path": "model.width", "choices": [16, 32, 64]},
    "heads": {
        "path": "model.heads", "choices": [1, 2, 4, 8],
        "when": {"fusion": ["cross_attention", "perceiver_shared", "perceiver_per_modality"]},
    },
    "latents": {
        "path": "model.latents", "choices": [4, 8, 16],
        "when": {"fusion": ["perceiver_shared", "perceiver_per_modality", "c_abstractor"]},
    },
    "learning_rate": {"path": "learning_rate", "low": 3e-4, "high": 1e-2, "log": True},
    "dropout": {"path": "model.dropout", "low": 0.0, "high": 0.4},
    "modalities": {
        "path": "model.modalities",
        "choices": [["dna", "rna", "protein"], ["rna", "protein"], ["rna"]],
        "labels": ["dna+rna+protein", "rna+protein", "rna"],
    },
}  # fmt: skip


def a_study(trials: int = 60, *, name: str = "made", seed: int = 3) -> dict[str, Any]:
    """trials.json, version 2."""
    random = np.random.default_rng(seed)
    made = [_trial(number, random) for number in range(trials)]
    complete = [trial for trial in made if trial["state"] == "complete"]
    best = max(complete, key=lambda trial: trial["value"])
    return {
        "version": 2,
        "study": name,
        "metric": "val_r2",
        "objectives": [
            {"name": "val_r2", "direction": "maximize"},
            {"name": "parameters", "direction": "minimize"},
        ],
        "status": "finished",
        "seconds": 5210.0,
        "device_hours": sum(trial["device_seconds"] or 0 for trial in made) / 3600,
        "budget": {"trials": trials, "hours": 2.0, "device_hours": None},
        "best": best["number"],
        "front": [],
        "importances": {"learning_rate": 0.52, "fusion": 0.3, "width": 0.11, "dropout": 0.07},
        "variants": "fusion",
        "space": SPACE,
        "sampler": "tpe",
        "scheduler": "asha",
        "seed": 0,
        "dataset": {"fingerprint": "feedfacefeedface", "label_provenance": LABELS, "transcripts": 3450},
        "storage": "postgresql://isoformer:***@db.example.org/studies",
        "run": "parent-run",
        "trials": made,
    }


def _trial(number: int, random: np.random.Generator) -> dict[str, Any]:
    params = _params(random)
    score = 0.3 + SKILL[params["fusion"]] - 0.09 * (math.log10(params["learning_rate"]) + 2.7) ** 2
    score += 0.0006 * params["width"] - 0.1 * params["dropout"] + float(random.normal(0, 0.02))
    if number == 17:
        score = -6.5  # one that diverged
    state = "failed" if number % 13 == 5 else "pruned" if random.random() < 0.35 else "complete"
    epochs = {"failed": 2, "pruned": 6, "complete": 20}[state]
    curve = [
        [epoch, score - 0.25 * math.exp(-epoch / 4) + float(random.normal(0, 0.006))]
        for epoch in range(epochs)
    ]
    weights = int(params["width"] ** 2 * 9 + 40_000 * random.random())
    value = None if state == "failed" else curve[-1][1]
    seconds = epochs * (1.5 + params["width"] / 30)
    return {
        "number": number, "state": state, "value": value,
        "values": [] if value is None else [value, weights if state == "complete" else None],
        "params": params, "epochs": epochs, "seconds": seconds, "device_seconds": seconds * 1.1,
        "parameters": weights, "error": ERROR if state == "failed" else "", "run": f"{number:032x}",
        "started": 1.7e9 + 40 * number, "ended": 1.7e9 + 40 * number + seconds, "curve": curve,
        "tissues": _tissues(score, random) if state == "complete" else {},
    }  # fmt: skip


def _params(random: np.random.Generator) -> dict[str, Any]:
    fusion = FUSIONS[random.integers(len(FUSIONS))]
    params: dict[str, Any] = {"fusion": fusion, "width": int(random.choice([16, 32, 64]))}
    if fusion in SPACE["heads"]["when"]["fusion"]:
        params["heads"] = int(random.choice([1, 2, 4, 8]))
    if fusion in SPACE["latents"]["when"]["fusion"]:
        params["latents"] = int(random.choice([4, 8, 16]))
    params["learning_rate"] = float(10 ** random.uniform(math.log10(3e-4), -2))
    params["dropout"] = float(random.uniform(0, 0.4))
    params["modalities"] = SPACE["modalities"]["labels"][random.integers(3)]
    return params


def _tissues(score: float, random: np.random.Generator) -> dict[str, float | None]:
    easy = np.random.default_rng(0).normal(0, 0.06, len(TISSUES))
    scores = {t: score + float(e + random.normal(0, 0.02)) for t, e in zip(TISSUES, easy, strict=True)}
    return {**scores, TISSUES[3]: None} if random.random() < 0.2 else dict(scores)


def some_finals(study: dict[str, Any], models: int = 3, seeds: int = 5) -> dict[str, Any]:
    """finals.json of the study's best trials."""
    random = np.random.default_rng(5)
    complete = [trial for trial in study["trials"] if trial["state"] == "complete"]
    best = sorted(complete, key=lambda trial: -trial["value"])[:models]
    made = []
    for rank, trial in enumerate(best, 1):
        runs = [
            _final_run(f"{study['study']}-final-{rank}", seed, trial["value"], random)
            for seed in range(seeds)
        ]
        tests = {name: [run["test"][name] for run in runs] for name in ("r2", "spearman", "pearson")}
        made.append(
            {
                "rank": rank,
                "trial": trial["number"],
                "params": trial["params"],
                "runs": runs,
                "test_mean": {name: float(np.mean(values)) for name, values in tests.items()},
                "test_sd": {name: float(np.std(values, ddof=1)) for name, values in tests.items()},
            }
        )
    return {"version": 1, "study": study["study"], "models": made}


def _final_run(name: str, seed: int, score: float, random: np.random.Generator) -> dict[str, Any]:
    validation, test = score + float(random.normal(0, 0.01)), score - 0.03 + float(random.normal(0, 0.015))
    return {
        "run": f"{name}-seed{seed}", "seed": seed,
        "val": {"val_r2": validation, "val_spearman": validation + 0.2},
        "test": {"r2": test, "spearman": test + 0.2, "pearson": test + 0.22},
    }  # fmt: skip


def write_study(root: Path, study: dict[str, Any], *, with_finals: bool = True) -> None:
    """Both files, under a root."""
    folder = root / "studies" / study["study"]
    folder.mkdir(parents=True)
    (folder / "trials.json").write_text(json.dumps(study))
    if with_finals:
        (folder / "finals.json").write_text(json.dumps(some_finals(study)))
