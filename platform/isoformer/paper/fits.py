"""The fits behind a table: run side by side on Ray, each leaving its predictions in the root.

Shapes: N transcripts, K tissues.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from isoformer.ablation import AblationConfig, gene_folds
from isoformer.config import FrozenConfig
from isoformer.paper.rows import Row
from isoformer.storage import Storage
from isoformer.training.config import TrainConfig
from isoformer.training.data import PinnedDataset, load_dataset
from isoformer.training.runs import RUNNING_OPTIONS

Progress = Callable[[str, int, int], None]
_FITS: Final = "tables/fits/"


class Fit(FrozenConfig):
    """One fit of a row. `fold` null: the dataset's own test split."""

    config: TrainConfig
    data_fingerprint: str
    folds: int | None
    fold: int | None

    @property
    def key(self) -> str:
        stated = self.model_dump(mode="json", exclude={"config": set(RUNNING_OPTIONS)})
        digest = hashlib.blake2b(json.dumps(stated, sort_keys=True).encode(), digest_size=16)
        return f"{_FITS}{digest.hexdigest()}.npy"


def run_fit(fit: Fit, data: PinnedDataset) -> NDArray[np.float32]:
    """Natural log(1 + TPM) of the rows that the fit did not see, in their order."""
    from isoformer.training.loop import fit as fit_model
    from isoformer.training.loop import predict

    scored = scored_rows(fit, data)
    config, source = fit.config, data
    if fit.fold is not None:
        is_scored = np.isin(np.arange(len(data)), scored)
        source = data.with_split(np.where(is_scored, "test", "train"))
        config = config.edited(validation="redraw")
    return predict(fit_model(config, source).model, data, scored)


class Datasets:
    """Each combination of embeddings and tokens, read once; the RNAs' sketches, the same for all, once."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.loaded: dict[str, PinnedDataset] = {}

    def of(self, config: TrainConfig) -> PinnedDataset:
        keys = {m: config.keys[m] for m in config.model.modalities if m in config.keys}
        inside = {m: one.model_dump(mode="json") for m, one in config.model.encoders.items()}
        name = json.dumps([keys, inside], sort_keys=True)
        if name not in self.loaded:
            first = next(iter(self.loaded.values()), None)
            data = load_dataset(self.root, keys, encoders=config.model.encoders, sketches=first is None)
            self.loaded[name] = data if first is None else replace(data, rna_sketches=first.rna_sketches)
        return self.loaded[name]


def run_missing(
    rows: Sequence[Row],
    options: AblationConfig,
    datasets: Datasets,
    storage: Storage,
    progress: Progress | None,
) -> None:
    """Run the fits whose predictions are not there, as many at a time as the cluster has cores for."""
    import ray

    wanted = [(row, fit) for row in rows for fit in fits_of(row, options, datasets.of(row.config))]
    missing = [(row, fit) for row, fit in wanted if not storage.exists(fit.key)]
    remote = ray.remote(_fit_task)
    boxes: dict[int, Any] = {}
    waiting: dict[Any, str] = {}
    done = len(wanted) - len(missing)
    for row, fit in missing:
        data = datasets.of(row.config)
        box = boxes.setdefault(id(data), ray.put(data))
        options_of = {"num_cpus": fit.config.threads, "num_gpus": 1 if fit.config.device == "cuda" else 0}
        waiting[remote.options(**options_of).remote(fit, box, storage)] = row.name
    while waiting:
        (finished, *_), _ = ray.wait(list(waiting), num_returns=1)
        name = waiting.pop(finished)
        ray.get(finished)
        done += 1
        if progress is not None:
            progress(name, done, len(wanted))


def _fit_task(fit: Fit, data: PinnedDataset, storage: Storage) -> None:
    buffer = io.BytesIO()
    np.save(buffer, run_fit(fit, data), allow_pickle=False)
    storage.write_bytes(fit.key, buffer.getvalue())


def fits_of(row: Row, options: AblationConfig, data: PinnedDataset, seed: int | None = None) -> list[Fit]:
    """Of one seed, or of all."""
    seeds = options.seeds if seed is None else (seed,)
    folds = [None] if options.folds is None else list(range(options.folds))
    return [
        Fit(
            config=row.config.edited(seed=one),
            data_fingerprint=data.fingerprint,
            folds=options.folds,
            fold=fold,
        )
        for one in seeds
        for fold in folds
    ]


def scored_rows(fit: Fit, data: PinnedDataset) -> NDArray[np.int64]:
    if fit.fold is None or fit.folds is None:
        return data.rows("test")
    return np.flatnonzero(gene_folds(data.gene_ids, fit.folds, fit.config.seed) == fit.fold)
