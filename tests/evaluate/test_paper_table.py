"""The paper's tables: which fits make them, what they say, and that nothing is done twice."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoformer.config import build
from isoformer.errors import ConfigError
from isoformer.paper.fits import Datasets, Fit, fits_of, run_fit, scored_rows
from isoformer.paper.rows import table_rows
from isoformer.paper.run import paper_table
from isoformer.settings import Settings
from isoformer.storage import open_storage
from tiny_dataset import write_dataset


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Settings:
    from isoformer.embeddings.pipeline import embed

    root = str(tmp_path_factory.mktemp("tables"))
    write_dataset(root, shards=2, genes_per_shard=9)
    made = build(
        Settings,
        {
            "root": root,
            "embed": {"encoders": [{"name": f"composition-{m}"} for m in ("dna", "rna", "protein")]},
            "train": {"epochs": 1, "model": {"width": 8, "heads": 2, "latents": 2}},
            "evaluate": {"folds": 2, "seeds": [0, 1], "draws": 20},
        },
    )
    embed(made.embed, root)
    return made


def test_a_row_scores_every_gene_by_fits_that_never_saw_it(settings: Settings) -> None:
    row = table_rows("modalities", settings)[0]
    data = Datasets(settings.root).of(row.config)
    fits = fits_of(row, settings.evaluate, data)
    assert [(fit.config.seed, fit.fold) for fit in fits] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len({fit.key for fit in fits}) == 4
    scored = [scored_rows(fit, data) for fit in fits[:2]]
    assert sorted(np.concatenate(scored)) == list(range(len(data)))
    assert not set(data.gene_ids[scored[0]]) & set(data.gene_ids[scored[1]])
    other = data.targets.copy()
    other[scored[0]] += 100.0
    from dataclasses import replace

    spoilt = replace(data, targets=other)
    assert np.array_equal(run_fit(fits[0], data), run_fit(fits[0], spoilt))
    own = Fit(config=row.config, data_fingerprint="", folds=None, fold=None)
    assert np.array_equal(scored_rows(own, data), data.rows("test"))


def test_the_rows_are_those_of_the_paper(settings: Settings) -> None:
    names = {
        name: [row.name for row in table_rows(name, settings)]
        for name in ("modalities", "fusions", "transfer")
    }
    assert names["modalities"] == [
        "dna", "rna", "protein", "dna+rna", "dna+protein", "rna+protein", "dna+rna+protein",
    ]  # fmt: skip
    assert names["fusions"] == [
        "cross_attention", "concat", "perceiver_shared", "perceiver_per_modality", "c_abstractor",
    ]  # fmt: skip
    assert names["transfer"] == [
        "all pre-trained", "dna from scratch", "rna from scratch", "protein from scratch",
        "dna+rna+protein from scratch", "frozen",
    ]  # fmt: skip
    by_name = {row.name: row for row in table_rows("modalities", settings)}
    assert by_name["dna"].paper is not None and by_name["dna"].paper.r2 == 0.13
    assert by_name["dna+protein"].paper is None
    regimes = table_rows("transfer", settings)[2].config.model.encoders
    assert {m: one.regime for m, one in regimes.items()} == {
        "dna": "full",
        "rna": "scratch",
        "protein": "full",
    }


def test_a_table_stands_beside_the_papers_numbers_and_is_made_once(settings: Settings) -> None:
    told: list[tuple[str, int, int]] = []
    table = paper_table("modalities", settings, progress=lambda *args: told.append(args))
    assert told[-1][1:] == (28, 28)
    again: list[Any] = []
    assert paper_table("modalities", settings, progress=lambda *args: again.append(args)) == table
    assert again == []
    rows = {row.score.name: row for row in table.rows if row.score.method.startswith("cross")}
    assert rows["rna"].paper is not None and (rows["rna"].paper.r2, rows["rna"].paper.spearman) == (
        0.36,
        0.61,
    )
    methods = [row.score.method for row in table.rows]
    assert methods[:4] == ["ridge_baseline", "ridge_baseline", "nearest_gene", "ridge_probe"]
    flat = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert flat[-1]["row"] == "dna+rna+protein" and flat[-1]["paper_r2"] == "0.43"
    assert flat[-1]["labels"] == "made up" and flat[-1]["weights"] == "none"
    assert "| rna | cross_attention, frozen encoders |" in table.to_markdown()
    storage = open_storage(settings.root)
    page = storage.read_bytes("tables/modalities.html").decode()
    assert page.count("<tr>") == len(table.rows) + 1 and "<script" not in page
    assert {"tables/modalities.csv", "tables/modalities.md"} <= set(storage.list("tables/"))


def test_encoders_that_cannot_learn_are_named(settings: Settings) -> None:
    with pytest.raises(Exception, match="composition-dna cannot be trained"):
        paper_table("transfer", settings)


def test_without_embeddings_there_is_no_table(tmp_path: Path) -> None:
    empty = build(
        Settings,
        {"root": str(tmp_path), "train": {"keys": {}}, "embed": {"encoders": [{"name": "composition-dna"}]}},
    )
    rows = table_rows("modalities", empty)
    assert [row.name for row in rows] == ["dna"]
    with pytest.raises(ConfigError, match="needs embeddings"):
        table_rows(
            "fusions",
            empty.edited(
                embed={"encoders": [{"name": "composition-dna", "modality": "dna"}]},
                train={"keys": {}, "model": {"modalities": ["rna"]}},
            ),
        )
