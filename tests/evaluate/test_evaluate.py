"""Evaluation of a run, baselines and the modality table."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from isoformer.ablation import AblationConfig, ablation, gene_folds, subsets
from isoformer.baselines import baseline_inputs, probe_inputs, ridge_predictions, tabular_features
from isoformer.errors import FingerprintError, InputError, StorageError
from isoformer.evaluate import evaluate, read_evaluation
from isoformer.metrics import regression_metrics
from isoformer.model import ModelConfig
from isoformer.storage import open_storage
from isoformer.training.config import TrainConfig
from isoformer.training.runs import RunFolder, run_settings
from isoformer.training.workers import fit_in_folder
from made_dataset import made_dataset

CONFIG = TrainConfig(model=ModelConfig(width=8, heads=2), epochs=8, batch_size=8, learning_rate=5e-3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("root")
    folder = RunFolder(open_storage(path), "one")
    folder.claim(run_settings(CONFIG, made_dataset(), "one"), resume=False)
    fit_in_folder(CONFIG, made_dataset(), folder, outbox=lambda message: None)
    return str(path)


class TestEvaluate:
    def test_the_table_holds_the_model_and_its_baselines(self, root: str) -> None:
        data = made_dataset()
        result = evaluate(root, "one", data=data, draws=50)
        rows = [(row.name, row.method, row.trained) for row in result.table.rows]
        assert rows == [
            ("dna+rna+protein", "cross_attention", "pre-trained"),
            ("length", "ridge_baseline", "none"),
            ("composition", "ridge_baseline", "none"),
            ("dna+rna+protein", "ridge_probe", "pre-trained"),
        ]
        model = result.table.rows[0]
        assert (model.genes, model.transcripts) == (8, 16)
        assert model.r2.value > 0.4 and model.r2.low < model.r2.value < model.r2.high
        assert result.table.rows[1].r2.value < 0.2  # the made-up lengths know nothing
        assert {row.label_provenance for row in result.table.rows} == {"made by a test"}
        assert len(result.per_tissue) == 4 * 3

    def test_predictions_stand_beside_the_run_and_give_the_same_scores(self, root: str) -> None:
        result = evaluate(root, "one", data=made_dataset(), draws=20)
        table = pq.read_table(Path(root, "runs/one/predictions.parquet"))
        assert set(table["split"].to_pylist()) == {"test"}
        columns = [np.array(table[name].to_pylist()) for name in ("target", "prediction", "target_mask")]
        assert regression_metrics(*columns).mean["r2"] == pytest.approx(result.table.rows[0].r2.value)
        assert json.loads(table.schema.metadata[b"target_names"]) == ["tissue 0", "tissue 1", "tissue 2"]

    def test_evaluation_json_is_what_was_returned(self, root: str) -> None:
        result = evaluate(root, "one", data=made_dataset(), draws=20)
        assert read_evaluation(root, "one") == result
        assert "NaN" not in Path(root, "runs/one/evaluation.json").read_text()

    def test_another_dataset_an_empty_split_and_no_run_are_named(self, root: str) -> None:
        other = replace(made_dataset(), transcripts_fingerprint="other")
        named = f"trained on data {made_dataset().fingerprint}, the dataset here is {other.fingerprint}"
        with pytest.raises(FingerprintError, match=named):
            evaluate(root, "one", data=other)
        data = made_dataset()
        with pytest.raises(InputError, match="the split has no transcripts: got 'test'"):
            evaluate(root, "one", data=data.with_split(np.where(data.split == "test", "train", data.split)))
        with pytest.raises(InputError, match="baselines need a split they do not fit on"):
            evaluate(root, "one", data=data, split="train")
        with pytest.raises(StorageError, match="no such run; there are: one"):
            evaluate(root, "two", data=data)


class TestAblation:
    def test_every_subset_and_baseline_has_its_row(self) -> None:
        data = made_dataset().subset(["dna", "rna"])
        random_data = replace(data, encoder_trained=dict.fromkeys(data.modalities, "random"))
        options = AblationConfig(folds=None, seeds=(0, 1), draws=20)
        config = CONFIG.edited(epochs=1)
        told: list[tuple[str, int, int]] = []
        table = ablation(config, data, options, random_data=random_data, progress=lambda *x: told.append(x))
        assert len(table.rows) == 2 + 2 * 3 * 2 and told[-1] == ("done", 14, 14)
        random_rows = [row for row in table.rows if row.trained == "random"]
        assert [row.name for row in random_rows if row.method == "cross_attention"] == [
            "dna",
            "rna",
            "dna+rna",
        ]
        assert {row.repeats for row in table.rows} == {2}
        lines = list(csv.DictReader(table.to_csv().splitlines()))
        assert len(lines) == 14
        assert lines[2]["trained"] == "pre-trained" and lines[2]["labels"] == "made by a test"
        assert table.to_markdown().count("\n| ") >= 14

    def test_folds_predict_every_transcript_once_by_a_stranger(self) -> None:
        data = made_dataset().subset(["dna", "rna"])
        options = AblationConfig(folds=4, fusion_models=False, draws=50)
        table = ablation(CONFIG, data, options)
        row = next(row for row in table.rows if row.name == "dna+rna")
        assert (row.genes, row.transcripts, row.repeats) == (40, 80, 4)
        assert row.r2.value > 0.6 and row.r2.sd is not None
        assert "4 folds by gene" in table.protocol

    def test_no_gene_is_in_two_folds(self) -> None:
        genes = made_dataset().gene_ids
        fold_of = gene_folds(genes, 5, seed=3)
        for gene in np.unique(genes):
            assert len(set(fold_of[genes == gene])) == 1
        assert np.bincount(fold_of).tolist() == [16] * 5
        assert (gene_folds(genes, 5, seed=4) != fold_of).any()
        with pytest.raises(InputError, match="too few genes for these folds: got 30; allowed: at most 20"):
            gene_folds(genes, 30, seed=0)

    def test_random_data_must_be_the_same_transcripts(self) -> None:
        with pytest.raises(InputError, match="other transcripts"):
            ablation(CONFIG, made_dataset(), random_data=made_dataset(genes=20))

    def test_subsets_come_single_pair_all(self) -> None:
        assert [len(subset) for subset in subsets(["dna", "rna", "protein"])] == [1, 1, 1, 2, 2, 2, 3]


class TestBaselines:
    def test_features_of_a_hand_made_transcript(self) -> None:
        table = pa.table(
            {
                "rna": ["GGAUGCGCUUUAA", "ACGT"], "protein": ["MR", None],
                "five_utr_bases": [2, None], "cds_bases": [9, None], "three_utr_bases": [2, None],
            }
        )  # fmt: skip
        names, values = tabular_features(table)
        row = dict(zip(names, values[0], strict=True))
        assert row["log_rna_bases"] == pytest.approx(np.log1p(13)) and row["is_coding"] == 1
        assert row["five_utr_gc"] == 1 and row["three_utr_gc"] == 0
        assert row["cds_gc"] == pytest.approx(4 / 9)
        assert row["rna_T"] == pytest.approx(4 / 13) and row["protein_M"] == 0.5
        coding, missing = dict(zip(names, values[1], strict=True)), ("is_coding", "protein_M", "cds_gc")
        assert [coding[name] for name in missing] == [0, 0, 0] and np.isfinite(values).all()

    def test_a_ridge_finds_what_is_linear_and_never_sees_the_test_rows(self) -> None:
        data = made_dataset()
        fit_rows, test_rows = data.rows("train"), data.rows("test")
        predicted = ridge_predictions(probe_inputs(data), data, fit_rows)
        mask = data.target_mask[test_rows]
        assert regression_metrics(data.targets[test_rows], predicted[test_rows], mask).mean["r2"] > 0.6
        data.targets[test_rows] = 1e3
        np.testing.assert_array_equal(ridge_predictions(probe_inputs(data), data, fit_rows), predicted)

    def test_unknown_baselines_and_no_rows_are_named(self) -> None:
        data = made_dataset()
        with pytest.raises(InputError, match="unknown baseline: got 'gc'; allowed: length, composition"):
            baseline_inputs(data, "gc")
        with pytest.raises(InputError, match="no transcripts to fit"):
            ridge_predictions(probe_inputs(data), data, np.array([], dtype=np.int64))


def test_the_nearest_gene_is_another_one_with_the_likest_rna() -> None:
    from dataclasses import replace

    from isoformer.baselines import nearest_gene_predictions, target_statistics
    from isoformer.homology import sketch

    rng = np.random.default_rng(0)
    data = made_dataset(genes=10, isoforms=2)
    rnas = ["".join(rng.choice(list("ACGT"), size=800)) for _ in range(len(data))]
    rnas[18] = rnas[0][:700] + rnas[18][:100]  # gene 9 is like gene 0
    rnas[19] = rnas[18]
    data = replace(data, rna_sketches=np.stack([sketch(rna, "rna") for rna in rnas]))
    fit_rows = np.arange(17)  # of the last but one gene, an isoform
    predicted = nearest_gene_predictions(data, fit_rows)
    mean, _ = target_statistics(data, fit_rows)
    filled = np.where(data.target_mask, data.targets, mean)
    np.testing.assert_allclose(predicted[[18, 19]], np.stack([filled[0], filled[0]]))
    np.testing.assert_allclose(predicted[0], mean, rtol=1e-6)
    same = replace(data, rna_sketches=data.rna_sketches[[*range(17), 16, 18, 19]])  # type: ignore[index]
    np.testing.assert_allclose(nearest_gene_predictions(same, fit_rows)[17], predicted[17])  # its own gene


def test_equal_slots_are_those_of_a_plain_comparison() -> None:
    from isoformer.baselines import _equal_slots_with
    from isoformer.homology import EMPTY

    rng = np.random.default_rng(0)
    sketches = rng.integers(0, 6, size=(40, 16)).astype(np.uint32)
    sketches[rng.random(sketches.shape) < 0.2] = EMPTY
    equal_slots = _equal_slots_with(sketches[:30])
    for sketch in sketches:
        expected = ((sketches[:30] == sketch) & (sketch != EMPTY)).sum(axis=1)
        np.testing.assert_array_equal(equal_slots(sketch), expected)


def test_a_set_of_seeds_is_one_row_with_its_spread(tmp_path: Path) -> None:
    from isoformer.evaluate import evaluate, read_evaluation
    from isoformer.training.runs import RunFolder, run_settings
    from isoformer.training.seeds import seed_run, spreads, write_seeds
    from isoformer.training.workers import fit_in_folder

    data, storage = made_dataset(genes=60), open_storage(tmp_path)
    best = []
    for seed in (0, 1, 2):
        config = TrainConfig(model=ModelConfig(width=8, heads=2), epochs=2, batch_size=16, seed=seed)
        folder = RunFolder(storage, seed_run("set", seed))
        folder.claim(run_settings(config, data, folder.run), resume=False)
        fit_in_folder(config, data, folder, outbox=lambda message: None)
        best.append(folder.history()[folder.summary()["best_epoch"]])
    found = spreads(best)
    assert found["val_loss"].mean == pytest.approx(np.mean([one["val_loss"] for one in best]))
    assert found["val_loss"].sd == pytest.approx(np.std([one["val_loss"] for one in best], ddof=1))
    write_seeds(storage, "set", (0, 1, 2), found)
    together = evaluate(str(tmp_path), "set", draws=20, data=data)
    alone = [evaluate(str(tmp_path), seed_run("set", seed), draws=20, data=data) for seed in (0, 1, 2)]
    values = [one.table.rows[0].r2.value for one in alone]
    row = together.table.rows[0]
    assert row.repeats == 3
    assert row.r2.value == pytest.approx(np.mean(values))  # type: ignore[arg-type]
    assert row.r2.sd == pytest.approx(np.std(values, ddof=1))  # type: ignore[arg-type]
    assert row.r2.low == pytest.approx(np.mean([one.table.rows[0].r2.low for one in alone]))  # type: ignore[arg-type]
    assert [one.method for one in together.details][:4] == [row.method] * 3 + ["ridge_baseline"]
    assert together.details[0].isoforms.genes > 0
    orders = [one.isoforms.concordance.value for one in together.details[:3]]
    profiles = [one.specificity.profile.value for one in together.details[:3]]
    assert row.isoform_order.value == pytest.approx(np.mean(orders))  # type: ignore[arg-type]
    assert row.tissue_profile.value == pytest.approx(np.mean(profiles))  # type: ignore[arg-type]
    assert row.tissue_profile.sd == pytest.approx(np.std(profiles, ddof=1))  # type: ignore[arg-type]
    assert read_evaluation(str(tmp_path), "set") == together
