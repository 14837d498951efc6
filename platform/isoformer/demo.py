"""The whole road on a small real sample, in order; each step is what the verb of that name runs.

    prepare → plan, embed → sweep → train the best → evaluate, ablation → report

The sample is 345 human genes of chromosomes 21, 22 and Y with their measured GTEx expression (`demo_data`).
The settings are saved as `settings.yaml` under the output root, so that any step can be run again by hand.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import yaml

from isoformer.config import build, to_yaml, with_overrides
from isoformer.console import Output
from isoformer.demo_data import demo_paths
from isoformer.settings import Settings
from isoformer.storage import Storage, open_storage

RANDOM_SEED: Final = 0
"""Of the random twins of the encoders, which show what pre-training is worth."""
SAVED: Final = "settings.yaml"


def demo_settings(output: str, overrides: Sequence[str] = ()) -> Settings:
    """The demo's settings: tiny pre-trained encoders at two resolutions, and their random twins.

    `overrides` are `section.key=value`, as of any verb.
    """
    encoders = [
        {"name": name, "resolution": resolution}
        for resolution in ("pooled", "bins:16")
        for name in ("ntv2-tiny-dna", "ntv2-tiny-rna", "esm2-tiny")
    ]
    twins = [
        {**encoder, "random_seed": RANDOM_SEED} for encoder in encoders if encoder["resolution"] == "pooled"
    ]
    data: dict[str, Any] = {
        "root": output,
        "prepare": {**demo_paths(), "shards": 4},
        "embed": {"encoders": encoders + twins},
        "sweep": {"study": "demo", "trials": 15, "epochs": 20},
        "train": {"epochs": 60, "patience": 10},
    }
    return build(Settings, with_overrides(data, overrides), origin="demo settings")


def run_demo(output: str, out: Output, overrides: Sequence[str] = ()) -> None:
    """Run every step under `output`, a folder or a bucket's prefix; show what came out and where to look."""
    from isoformer import stages
    from isoformer.ray_session import ray_session
    from isoformer.sweep_stages import run_sweep
    from isoformer.tracking import open_line

    started = time.perf_counter()
    settings = demo_settings(output, overrides)
    storage = open_storage(output)
    _save(settings, storage)
    with ray_session(settings.ray):
        out.heading("1  prepare: genome, annotation and measured expression")
        stages.run_prepare(settings, out)
        out.heading("2  embed: pre-trained encoders and their random twins")
        stages.run_embed(settings, out)
        out.heading("3  sweep: fusion, width, heads, learning rate, modalities, resolution")
        run_sweep(settings, out, resume=True)
        out.heading("4  train: the best configuration, on Ray Train")
        settings = with_best(settings, storage)
        _save(settings, storage)
        stages.run_train(settings, out, resume=True)
    out.heading("5  evaluate: held-out genes, baselines, modality ablation")
    result = stages.run_evaluate(settings, out)
    out.heading("6  report")
    path = stages.run_report(settings)
    minutes = (time.perf_counter() - started) / 60
    out.say(f"\nDone in {minutes:.1f} minutes.")
    out.say(f"  report    {path}")
    out.say(f"  MLflow    {open_line(settings.tracking.for_root(settings.root))}")
    out.say(f"  settings  {output}/{SAVED}  (any step again: isoformer <verb> --config …)")
    out.result({"evaluation": result, "report": str(path), "minutes": minutes})


def with_best(settings: Settings, storage: Storage) -> Settings:
    """The settings with the sweep's best training configuration, longer patience kept."""
    best = yaml.safe_load(storage.read_bytes(f"studies/{settings.sweep.study}/best.yaml"))
    kept = {"epochs": settings.train.epochs, "patience": settings.train.patience}
    return settings.edited(train={**best, **kept})


def _save(settings: Settings, storage: Storage) -> None:
    storage.write_bytes(SAVED, to_yaml(settings).encode())
