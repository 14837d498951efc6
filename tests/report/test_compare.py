"""Runs side by side: numbers as the runs left them, and a plain word where they do not compare."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from isoformer.cli import main
from isoformer.errors import InputError, StorageError
from isoformer.evaluate import Evaluation
from isoformer.report import build_compare_report, compare
from isoformer.report.compare_page import file_name
from isoformer.report.comparison import Comparison
from isoformer.storage import open_storage
from isoformer.tracking import TrackingConfig, run_key
from page_structure import Structure, cells

QUIET = TrackingConfig(enabled=False)


@pytest.fixture(scope="module")
def compared(runs_root: Path) -> Comparison:
    return compare(open_storage(runs_root), ["base", "wide", "plain"])


@pytest.fixture(scope="module")
def page(runs_root: Path, compared: Comparison) -> str:
    path = build_compare_report(str(runs_root), compared, tracking=QUIET)
    assert path == runs_root / "reports" / "compare-base-wide-plain.html"
    return path.read_text()


def section(page: str, name: str) -> str:
    return page.split(f'<section id="{name}"')[1].split("</section>")[0]


def evaluation(root: Path, run: str) -> Evaluation:
    return Evaluation.model_validate_json((root / "runs" / run / "evaluation.json").read_text())


def model_tissues(root: Path, run: str) -> dict[str, float]:
    read = evaluation(root, run)
    return {one.tissue: one.r2 for one in read.per_tissue if one.method == "cross_attention" and one.r2}


def test_the_page_is_well_formed_and_alone(page: str) -> None:
    structure = Structure(page)
    assert len(structure.ids) == len(set(structure.ids))
    assert {fragment[1:] for fragment in structure.fragments} <= set(structure.ids)
    assert structure.addresses == ["data:,"] and not structure.unlabelled
    assert "script" not in structure.tags and page.count("<svg") == 6
    assert len(page.encode()) < 500_000


def test_only_keys_that_differ_are_listed(page: str) -> None:
    rows = cells(section(page, "configuration"))
    assert rows[0] == ["key", "base", "wide", "plain"]
    assert {row[0]: row[1:] for row in rows[1:]} == {
        "train.seed": ["0", "1", "0"],
        "train.learning_rate": ["0.001", "0.0003", "0.001"],
        "train.model.width": ["null", "32", "null"],
        "train.model.fusion": ["cross_attention", "cross_attention", "concat"],
    }


def test_scores_are_those_of_the_evaluations(page: str, runs_root: Path) -> None:
    rows = {row[0]: row for row in cells(section(page, "scores"))[1:]}
    for run in ("base", "wide"):
        row = evaluation(runs_root, run).table.rows[0]
        shown = [f"{s.value:.3f}[{s.low:.3f}, {s.high:.3f}]" for s in (row.r2, row.spearman, row.pearson)]
        assert rows[run][2:5] == shown
    assert rows["plain"][1:5] == ["–"] * 4
    kept = json.loads((runs_root / "runs" / "plain" / "metrics.jsonl").read_text().splitlines()[9])
    assert rows["plain"][5:] == [f"{kept[name]:.3f}" for name in ("val_r2", "val_spearman", "val_loss")]
    assert "scores on held-out genes of plain" in page


def test_tissues_and_their_differences_to_the_first_run(page: str, runs_root: Path) -> None:
    first, other = (model_tissues(runs_root, run) for run in ("base", "wide"))
    rows = cells(section(page, "tissues"))
    values = {row[0]: row[1:] for row in rows if len(row) == 3 and row[0] != "tissue"}
    differences = {row[0]: row[1] for row in rows if len(row) == 2 and row[0] != "tissue"}
    assert values == {t: [f"{first[t]:.3f}", f"{other[t]:.3f}"] for t in first}
    assert differences == {t: f"{other[t] - first[t]:+.3f}" for t in first}
    tissue = next(iter(first))
    assert f"<title>wide, {tissue}: {other[tissue] - first[tissue]:+.3f}</title>" in page


def test_runs_that_compare_are_said_to(page: str, compared: Comparison) -> None:
    assert compared.unfair == () and "their scores compare" in page and "not compare fairly" not in page


@pytest.mark.parametrize(
    "runs, reason",
    [
        (["base", "elsewhere"], "trained on different datasets: feed (base); beef (elsewhere)"),
        (["base", "redrawn"], "validation genes were drawn differently: the dataset's (base); 0.1 of the"),
    ],
)
def test_runs_that_do_not_compare_are_said_not_to(runs_root: Path, runs: list[str], reason: str) -> None:
    compared = compare(open_storage(runs_root), runs)
    assert len(compared.unfair) == 1 and reason in compared.unfair[0]
    page = build_compare_report(str(runs_root), compared, tracking=QUIET).read_text()
    assert "do not compare fairly" in page


def test_a_run_trained_again_since_it_was_evaluated_is_told(runs_root: Path, tmp_path: Path) -> None:
    shutil.copytree(runs_root / "runs", tmp_path / "runs")
    path = tmp_path / "runs" / "wide" / "evaluation.json"
    changed = json.loads(path.read_text()) | {"run_fingerprint": "another", "split": "validation"}
    path.write_text(json.dumps(changed))
    unfair = compare(open_storage(tmp_path), ["base", "wide"]).unfair
    assert unfair == (
        "they were scored on different splits: test (base); validation (wide)",
        "wide was trained again since it was evaluated",
    )


@pytest.mark.parametrize(
    "runs, problem",
    [
        (["base", "nope"], "runs/nope: there is no such run; there are: base, cross_attention-dna-"),
        (["base", "../runs/wide"], "there is no such run; there are: base"),
        (["base", "unfinished"], "runs/unfinished: the run is not finished"),
        (["base", "many"], "runs/many: is a set of seeds, not a run; its runs: base, wide"),
    ],
)
def test_a_bad_name_is_one_line_with_the_runs_there_are(
    runs_root: Path, runs: list[str], problem: str
) -> None:
    with pytest.raises(StorageError) as caught:
        compare(open_storage(runs_root), runs)
    assert problem in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("runs", [["base"], ["base", "base"], []])
def test_fewer_than_two_runs_are_refused(runs_root: Path, runs: list[str]) -> None:
    with pytest.raises(InputError, match="two different runs"):
        compare(open_storage(runs_root), runs)


def test_a_damaged_evaluation_is_named(runs_root: Path, tmp_path: Path) -> None:
    shutil.copytree(runs_root / "runs", tmp_path / "runs")
    (tmp_path / "runs" / "wide" / "evaluation.json").write_text('{"run": "wide"}')
    with pytest.raises(StorageError, match=r"runs/wide/evaluation.json: cannot be read: split"):
        compare(open_storage(tmp_path), ["base", "wide"])


def test_the_file_is_named_after_the_runs_and_shortened_without_collisions() -> None:
    assert file_name(["a", "b"]) == "compare-a-b.html"
    long = ["x" * 70, "y" * 70, "z" * 70]
    names = {file_name(long), file_name([long[0], long[2], long[1]])}
    assert len(names) == 2 and all(len(name) < 80 and "-and-2-more-" in name for name in names)


def test_runs_are_linked_where_the_tracker_knows_them(
    runs_root: Path, compared: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {run_key(str(runs_root), "wide"): "https://mlflow.example.org/#/runs/ab"}
    monkeypatch.setattr("isoformer.report.compare_page.run_links", lambda config, keys: given)
    page = build_compare_report(str(runs_root), compared, tmp_path / "page.html").read_text()
    assert page.count('<a href="https://mlflow.example.org/#/runs/ab">run</a>') == 1


def test_the_verb_prints_tables_or_json_and_writes_the_page(
    runs_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--set", f"root={runs_root}", "--set", "tracking.enabled=false"]
    output = tmp_path / "page.html"
    main(["compare", "base", "elsewhere", "--output", str(output), *settings])
    text = " ".join(capsys.readouterr().out.split())
    assert output.exists() and "0.310 [0.230, 0.380]" in text and f"report: {output}" in text
    assert "not a fair comparison: they were trained on different datasets" in text
    main(["compare", "base", "plain", "--json", *settings])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [run["run"] for run in found["runs"]] == ["base", "plain"]
    assert found["runs"][0]["scores"]["r2"]["value"] == 0.31 and found["runs"][1]["scores"] is None
    assert found["configuration"]["train.model.fusion"] == {"base": "cross_attention", "plain": "concat"}
    assert Path(found["report"]).exists()


def test_the_verb_refuses_a_bad_name_in_one_line(runs_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["compare", "base", "nope", "--set", f"root={runs_root}"])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and "there are: base, cross" in error
