"""The page says what is there and what is not, escapes what it shows and asks the network for nothing."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from isoformer.errors import StorageError
from isoformer.evaluate import Evaluation
from isoformer.report import build_report, build_sweep_report, print_table
from isoformer.report.figures import best_so_far, row_title
from isoformer.scores import ScoreTable
from isoformer.tracking import TrackingConfig, log_evaluation
from page_structure import Structure


@pytest.fixture(scope="module")
def page(full_root: Path) -> str:
    return build_report(str(full_root)).read_text()


def test_the_page_is_well_formed_small_and_alone(page: str) -> None:
    structure = Structure(page)
    assert len(page.encode()) < 3_000_000
    assert len(structure.ids) == len(set(structure.ids)), "ids are unique, across figures too"
    assert {fragment[1:] for fragment in structure.fragments} <= set(structure.ids)
    assert structure.addresses == ["data:,"], "the empty icon is the only address"
    assert "script" not in structure.tags and not structure.unlabelled
    assert not re.search(r"@import|url\((?!#)", page)


def test_every_part_is_there(page: str) -> None:
    assert page.count("<svg") == 7
    for text in (
        "0.310 ± 0.020", "[0.230, 0.380]", "ntv2-tiny-dna", "Salivary Gland", "cds out of frame", "345",
        "chr21.fa.gz", "Apache-2.0", "bins:16", "esm2-tiny.1a2b3c4d.bins-16.f16.99aabbcc", "101,000",
        "unknown", "12,345 parameters", "learning_rate", "feedfacefeedface", "mlflow",
        "--host 127.0.0.1", "optuna-dashboard", "1,234 pairs", "0.617", "[0.550, 0.680]", "0.389",
    ):  # fmt: skip
        assert text in page, text
    assert "Missing:" not in page


def test_labels_stand_beside_every_score(page: str) -> None:
    for section in ("scores", "tissues", "ablation", "training", "sweep"):
        text = page.split(f'<section id="{section}"')[1].split("</section>")[0]
        assert "measured GTEx gene mean TPM" in text, section


def test_random_encoders_are_called_random(page: str) -> None:
    assert 'class="tag random">random' in page
    assert "dna (ridge, random)" in page


def test_what_files_say_is_escaped(page: str) -> None:
    assert "<script" not in page
    assert "ValueError: &lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;of the principal transcript&gt;" in page


def test_colours_follow_the_readers_theme(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    assert "var(--accent)" in page and "#040404" not in page


def test_missing_parts_are_said_with_the_verb_that_makes_them(tmp_path: Path) -> None:
    page = build_report(str(tmp_path / "root"), tmp_path / "page.html").read_text()
    Structure(page)
    assert page.count("Missing:") == 8 and "<svg" not in page
    for verb in ("prepare", "embed", "train", "sweep", "evaluate"):
        assert f"<code>isoformer {verb}</code>" in page


def test_a_damaged_part_is_named_and_the_rest_is_shown(full_root: Path, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "root"
    shutil.copytree(full_root, root)
    (root / "runs" / "final" / "evaluation.json").write_text("{")
    (root / "runs" / "final" / "predictions.parquet").unlink()
    page = build_report(str(root), run="final", study="demo").read_text()
    assert "runs/final/evaluation.json cannot be read" in page
    assert "Trials, best first" in page and "345" in page


def test_the_page_lands_in_reports_and_replaces_the_one_before(full_root: Path) -> None:
    path = build_report(str(full_root), run="final", study="demo")
    assert path == full_root / "reports" / "final.html"
    assert build_report(str(full_root), run="final", study="demo", tracking=TrackingConfig()) == path


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(full_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        build_report(str(full_root), tmp_path / "file" / "page.html")


def test_the_terminal_table_names_labels_and_protocol(full_root: Path) -> None:
    table = ScoreTable.model_validate_json((full_root / "runs" / "final" / "ablation.json").read_text())
    out = io.StringIO()
    print_table(table, Console(file=out, width=200), title="What each modality brings")
    text = out.getvalue()
    assert "What each modality brings" in text and "0.120 ± 0.02 [0.04, 0.19]" in text
    assert "measured GTEx gene mean TPM" in text and "5 folds by gene" in text and "random" in text
    assert row_title(table.rows[0]) == "length (ridge, no encoder)"


def test_an_evaluation_is_a_few_metrics_and_tables_in_the_tracker(full_root: Path) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.metrics: dict[str, float] = {}
            self.texts: dict[str, str] = {}

        def log_metrics(self, run: str, metrics: dict[str, float]) -> None:
            self.metrics |= metrics

        def set_tags(self, run: str, tags: dict[str, str]) -> None:
            pass

        def log_text(self, run: str, text: str, path: str) -> None:
            self.texts[path] = text

    evaluation = Evaluation.model_validate_json((full_root / "runs/final/evaluation.json").read_text())
    recorder: Any = Recorder()
    log_evaluation(recorder, "run", evaluation)
    expected = {"test_r2": 0.31, "test_spearman": 0.51, "test_pearson": 0.53, "test_isoform_order": 0.61}
    assert recorder.metrics == expected
    names = {"scores.csv", "per_tissue.csv", "within.json"}
    assert set(recorder.texts) == {f"evaluation/{name}" for name in names}
    assert len(recorder.texts["evaluation/per_tissue.csv"].splitlines()) == 1 + 2 * 30


def test_best_so_far_ignores_trials_that_did_not_finish() -> None:
    trials = [
        {"number": 0, "state": "pruned", "value": 0.9},
        {"number": 1, "state": "complete", "value": 0.1},
        {"number": 2, "state": "complete", "value": 0.05},
        {"number": 3, "state": "complete", "value": 0.3},
    ]
    assert best_so_far(trials) == [(1, 0.1), (2, 0.1), (3, 0.3)]


def test_the_page_of_the_sweep_is_linked_where_there_is_one(full_root: Path, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "root"
    shutil.copytree(full_root, root)
    before = build_report(str(root), run="final", study="demo").read_text()
    assert "The page of this sweep" not in before
    sweep_page = build_sweep_report(str(root), "demo", tracking=TrackingConfig(enabled=False))
    path = build_report(str(root), run="final", study="demo")
    address = path.read_text().split('">The page of this sweep')[0].rpartition('href="')[2]
    assert (path.parent / address).resolve() == sweep_page.resolve()
