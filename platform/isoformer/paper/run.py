"""The paper's tables on a root's own data, each row beside what the paper reports.

    modalities   every single modality, each pair, all
    fusions      every way to bring the modalities together
    transfer     encoders that learn along from pre-trained weights, or from scratch, one or all; beside them
                 the frozen ones
    encoders     each embedding dataset of the root in turn, the other modalities as they are

A row is some fits (a fold and a seed each) scored on genes that the fit never saw. Each leaves its
predictions under `tables/fits/`, named by everything that can change them, so that a table that is asked for
again, or that was killed, does only what is missing. The baselines stand first.

Shapes: N transcripts, K tissues, F features.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from isoformer.ablation import AblationConfig
from isoformer.baselines import WITHOUT_ENCODERS, Predict, baseline_predictors, probe_predictors
from isoformer.paper.fits import Datasets, Fit, Progress, fits_of, run_missing, scored_rows
from isoformer.paper.rows import TABLES, Row, TableName, table_rows
from isoformer.paper.table import PaperRow, PaperTable
from isoformer.scores import Predicted, score_row
from isoformer.storage import Storage, open_storage
from isoformer.training.config import TrainConfig
from isoformer.training.data import PinnedDataset

if TYPE_CHECKING:
    from isoformer.settings import Settings

__all__ = ["TABLES", "PaperTable", "TableName", "paper_table"]


def paper_table(name: TableName, settings: Settings, *, progress: Progress | None = None) -> PaperTable:
    """Run what is missing of a table, and give it; `tables/<name>` in the root holds it in four forms. Ray
    must be connected.

    ConfigError where the configuration names neither embeddings nor encoders that learn along.
    """
    rows, options = table_rows(name, settings), settings.evaluate
    storage, datasets = open_storage(settings.root), Datasets(settings.root)
    run_missing(rows, options, datasets, storage, progress)
    fullest = max(rows, key=lambda row: len(row.config.model.modalities))
    scored = [*_baseline_rows(fullest, options, datasets, with_probe=name == "modalities")]
    for row in rows:
        data = datasets.of(row.config)

        def stored(fit: Fit, data: PinnedDataset = data) -> NDArray[np.floating]:
            return np.load(io.BytesIO(storage.read_bytes(fit.key)), allow_pickle=False)

        repeats = [_repeat(row, seed, options, data, stored) for seed in options.seeds]
        score = score_row(data, row.name, _method(row.config), repeats, draws=options.draws)
        scored.append(PaperRow(score=score, paper=row.paper))
    data = datasets.of(rows[0].config)
    table = PaperTable(
        name=name,
        protocol=_protocol(options),
        transcripts=len(data),
        genes=len(np.unique(data.gene_ids)),
        label_provenance=data.label_provenance,
        data_fingerprint=data.transcripts_fingerprint,
        rows=tuple(scored),
    )
    _save(table, storage)
    return table


def _save(table: PaperTable, storage: Storage) -> None:
    forms = {
        "json": table.model_dump_json(indent=1),
        "csv": table.to_csv(),
        "md": table.to_markdown(),
        "html": table.to_html(),
    }
    for suffix, text in forms.items():
        storage.write_bytes(f"tables/{table.name}.{suffix}", text.encode())


def _repeat(
    row: Row,
    seed: int,
    options: AblationConfig,
    data: PinnedDataset,
    predicted: Callable[[Fit], NDArray[np.floating]],
) -> Predicted:
    """One seed's predictions (N, K), put together from those of each of its fits for what it scores."""
    whole = np.zeros(data.targets.shape, dtype=np.float64)
    parts = []
    for fit in fits_of(row, options, data, seed):
        parts.append(scored_rows(fit, data))
        whole[parts[-1]] = predicted(fit)
    if options.folds is None:
        return Predicted(whole, parts[0])
    return Predicted(whole, np.arange(len(data)), tuple(parts))


def _baseline_rows(
    row: Row, options: AblationConfig, datasets: Datasets, *, with_probe: bool
) -> Iterator[PaperRow]:
    """What needs no model, over the same genes; where a seed draws no folds, it changes nothing in these."""
    data = datasets.of(row.config)
    methods = {**baseline_predictors(data), **(probe_predictors(data) if with_probe else {})}
    seeds = options.seeds[:1] if options.folds is None else options.seeds
    for (name, method), predict in methods.items():

        def predicted(fit: Fit, predict: Predict = predict) -> NDArray[np.floating]:
            scored = scored_rows(fit, data)
            return predict(np.setdiff1d(np.arange(len(data)), scored))[scored]

        repeats = [_repeat(row, seed, options, data, predicted) for seed in seeds]
        uses = method not in WITHOUT_ENCODERS
        score = score_row(data, name, method, repeats, draws=options.draws, uses_encoders=uses)
        yield PaperRow(score=score, paper=None)


def _method(config: TrainConfig) -> str:
    regimes = sorted({one.regime for one in config.model.encoders.values()})
    return config.model.fusion + (f", joint ({', '.join(regimes)})" if regimes else ", frozen encoders")


def _protocol(options: AblationConfig) -> str:
    seeds = f"{len(options.seeds)} seed{'s' if len(options.seeds) > 1 else ''}"
    if options.folds is None:
        return f"the dataset's test split, {seeds}"
    return f"{options.folds} folds by gene, {seeds}, every gene scored by a model that never saw it"
