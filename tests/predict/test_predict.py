"""Predicting files: nothing is lost, files say what they hold, parts are made once, memory is a batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq
import pytest

from isoformer.cli import main
from isoformer.errors import ConfigError, FingerprintError, InputError, StorageError
from isoformer.predict.inputs import PredictInput
from isoformer.predict.parts import PartSettings, predict_here, predict_parts
from isoformer.predict.results import TARGET_PREFIX, PredictCounts, read_metadata
from isoformer.predict.rows import PredictRow
from isoformer.predict.run import is_file, predict_file
from isoformer.sequence_model import SequenceModel, TranscriptSequences
from predict.trained import cached_predictions, transcripts_of

COLUMNS = ["log1p_tpm.Liver", "log1p_tpm.Brain"]


@pytest.fixture
def rows(root: Path) -> list[PredictRow]:
    """Those of the root, and three that cannot be predicted."""
    good = [PredictRow(one.transcript_id, one, "ok") for one in transcripts_of(root)]
    bad = [
        PredictRow.set_aside("letters", "rna_letters", "position 3"),
        PredictRow("short", TranscriptSequences("short", dna="ACGT"), "ok"),
        PredictRow("nothing", TranscriptSequences("nothing", protein="XXX"), "ok"),
    ]
    return [*good[:5], *bad, *good[5:]]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_every_row_is_there_with_a_prediction_or_a_reason(
    model: SequenceModel, root: Path, rows: list[PredictRow], tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"out.{suffix}"
    counts = predict_file(model, iter(rows), str(output), batch_size=4)
    assert counts == PredictCounts(
        rows=27,
        predicted=24,
        not_predicted={"rna_letters": 1, "dna_window_too_small": 1, "protein_no_valid_letter": 1},
        status={"ok": 24, "quarantined": 3},
        modalities=counts.modalities,
    )
    assert sum(counts.modalities.values()) == 24
    table = pq.read_table(output) if suffix == "parquet" else arrow_csv.read_csv(output)
    assert table.column_names == ["transcript_id", "status", "reason", "modalities", "notes", *COLUMNS]
    assert table["transcript_id"].to_pylist() == [row.transcript_id for row in rows]
    values = np.stack([table[name].to_numpy(zero_copy_only=False) for name in COLUMNS], axis=1)
    assert np.isnan(values[5:8]).all() and table[COLUMNS[0]].null_count == 3
    expected = cached_predictions(root)
    np.testing.assert_allclose(np.delete(values, [5, 6, 7], axis=0), expected, atol=1e-4, rtol=0)
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_a_parquet_file_says_what_it_holds(
    model: SequenceModel, rows: list[PredictRow], tmp_path: Path
) -> None:
    predict_file(model, iter(rows), str(tmp_path / "out.parquet"))
    metadata = read_metadata(pq.read_schema(tmp_path / "out.parquet"))
    assert metadata["unit"] == "natural log(1 + TPM)"
    assert (metadata["model"], metadata["run"]) == (model.fingerprint, "one")
    assert set(metadata["encoders"]) == {"dna", "rna", "protein"}


def test_memory_holds_a_batch(model: SequenceModel, rows: list[PredictRow], tmp_path: Path) -> None:
    pulled, ahead = 0, []

    def endless() -> Iterator[PredictRow]:
        nonlocal pulled
        for _ in range(8):
            for row in rows:
                pulled += 1
                yield row

    predict_file(
        model,
        endless(),
        str(tmp_path / "out.csv"),
        batch_size=9,
        progress=lambda done: ahead.append(pulled - done),
    )
    assert pulled == 8 * 27 and set(ahead) == {0}


def test_a_failure_leaves_no_file(model: SequenceModel, rows: list[PredictRow], tmp_path: Path) -> None:
    def failing() -> Iterator[PredictRow]:
        yield from rows
        raise StorageError("the disk is gone")

    with pytest.raises(StorageError, match="the disk is gone"):
        predict_file(model, failing(), str(tmp_path / "out.parquet"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match=r"must end in one of \.parquet, \.csv"):
        predict_file(model, iter(rows), str(tmp_path / "out.txt"))


@pytest.mark.parametrize("name", ["out.tsv", "out.CSV", "s3://bucket/out.csv.gz"])
def test_a_file_of_another_kind_is_not_taken_for_a_folder(name: str) -> None:
    with pytest.raises(ConfigError, match=r"must end in one of \.parquet, \.csv, or be a folder's name"):
        is_file(name)
    assert is_file("out.csv") and not is_file("predictions.v2")


@pytest.fixture
def settings(model: SequenceModel, root: Path, tmp_path: Path) -> PartSettings:
    return PartSettings(f"{root}/runs/one", model.fingerprint, str(tmp_path / "parts"), batch_size=4)


def contents(settings: PartSettings) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(settings.output).iterdir())}


def test_parts_are_made_once(
    model: SequenceModel, rows: list[PredictRow], settings: PartSettings, tmp_path: Path
) -> None:
    report = predict_parts(iter(rows), settings, rows_per_part=10, predictor=predict_here)
    assert (report.parts, report.present) == (3, 0)
    made = contents(settings)
    assert list(made) == ["_manifest.json", "part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert json.loads(made["_manifest.json"])["parts"] == list(made)[1:]
    (Path(settings.output) / "part-00001.parquet").unlink()
    (Path(settings.output) / "_manifest.json").unlink()
    again = predict_parts(iter(rows), settings, rows_per_part=10, predictor=predict_here)
    assert (again.parts, again.present, again.counts) == (3, 2, report.counts)
    assert contents(settings) == made
    predict_file(model, iter(rows), str(tmp_path / "whole.parquet"), batch_size=4)
    whole, parts = pq.read_table(tmp_path / "whole.parquet"), pq.read_table(f"{settings.output}/")
    assert (
        parts.replace_schema_metadata(None)
        .drop(COLUMNS)
        .equals(whole.replace_schema_metadata(None).drop(COLUMNS))
    )
    for name in COLUMNS:
        np.testing.assert_allclose(
            parts[name].to_numpy(), whole[name].to_numpy(), atol=1e-4, rtol=0, equal_nan=True
        )


def test_parts_of_something_else_are_not_touched(rows: list[PredictRow], settings: PartSettings) -> None:
    predict_parts(iter(rows), settings, rows_per_part=9, predictor=predict_here)
    made = contents(settings)
    with pytest.raises(FingerprintError, match=r"part-00000\.parquet: was made from other rows"):
        predict_parts(iter(rows), settings, rows_per_part=8, predictor=predict_here)
    with pytest.raises(
        FingerprintError, match=r"part-00002\.parquet: is not of this input, which has 2 parts"
    ):
        predict_parts(iter(rows[:18]), settings, rows_per_part=9, predictor=predict_here)
    other = replace(settings, fingerprint="0123456789abcdef")
    with pytest.raises(FingerprintError, match="by another model"):
        predict_parts(iter(rows), other, rows_per_part=9, predictor=predict_here)
    assert contents(settings) == made


def test_a_folder_of_something_else_is_refused(rows: list[PredictRow], settings: PartSettings) -> None:
    other = Path(settings.output) / "transcripts" / "manifest.json"
    other.parent.mkdir(parents=True)
    other.write_text("{}")
    with pytest.raises(InputError, match=r"holds something else \(transcripts/manifest.json\)"):
        predict_parts(iter(rows), settings, predictor=predict_here)
    assert [path.name for path in Path(settings.output).iterdir()] == ["transcripts"]


def test_a_worker_with_another_model_stops(rows: list[PredictRow], settings: PartSettings) -> None:
    other = replace(settings, fingerprint="0123456789abcdef")
    with pytest.raises(FingerprintError, match=r"they must see the same files"):
        predict_parts(iter(rows), other, rows_per_part=9, predictor=predict_here)


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
        raise SystemExit(0)
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_the_verb_predicts_with_a_run_and_with_what_was_exported(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = str(root / "transcripts/shard-00001.parquet")
    common = ("--set", f"root={root}", "--set", "run=one", "--json")
    first, second = tmp_path / "run.parquet", tmp_path / "bundle.parquet"
    status, out, error = run("predict", shard, "--output", str(first), *common, capsys=capsys)
    assert status == 0, error
    result = json.loads(out)
    assert (result["rows"], result["predicted"], result["status"]) == (12, 12, {"ok": 12})
    table = pq.read_table(first)
    values = np.stack([table[TARGET_PREFIX + name].to_numpy() for name in ("Liver", "Brain")], axis=1)
    np.testing.assert_allclose(values, cached_predictions(root)[12:], atol=1e-4, rtol=0)
    status, out, error = run("export", str(tmp_path / "bundle"), "--with-weights", *common, capsys=capsys)
    assert status == 0 and json.loads(out)["fingerprint"] == read_metadata(pq.read_schema(first))["model"]
    status, _, error = run(
        "predict", shard, "--output", str(second), "--model", str(tmp_path / "bundle"), capsys=capsys
    )
    assert status == 0, error
    assert pq.read_table(second).equals(table)


def test_mistakes_are_one_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out.csv")
    (tmp_path / "x.csv").write_text("transcript_id,rna\na,ACGT\n")
    given = str(tmp_path / "x.csv")
    for arguments, expected in [
        ((given, "--output", out, "--set", f"root={root}"), "there is no such run; there are: one"),
        ((given, "--output", out, "--model", str(tmp_path)), "not a model"),
        ((given, "--output", out, "--workers", "2"), "--workers is of a folder of part files"),
        ((given,), "Missing option '--output'"),
        (
            (str(tmp_path / "y.csv"), "--output", out, "--model", f"{root}/runs/one"),
            "input file does not exist",
        ),
    ]:
        status, _, error = run("predict", *arguments, capsys=capsys)
        assert status == 2 and expected in error and "Traceback" not in error, error
    status, _, error = run("export", "--set", f"root={root}", capsys=capsys)
    assert status == 2 and "export needs a FOLDER, or --register NAME" in error


def test_a_row_given_in_any_spelling_is_the_same(model: SequenceModel, root: Path, tmp_path: Path) -> None:
    one = next(one for one in transcripts_of(root) if one.protein and set(one.protein) != {"X"})
    lines = [
        "transcript_id,dna,rna,protein",
        f"as,{one.dna},{one.rna},{one.protein}",
        f"lower,{str(one.dna).lower()},{str(one.rna).replace('T', 'u')},{str(one.protein).lower()}*",
    ]
    (tmp_path / "x.csv").write_text("\n".join(lines) + "\n")
    rows = list(PredictInput(str(tmp_path / "x.csv")).rows(model.policy))
    predicted = model.predict([row.sequences for row in rows if row.sequences is not None])
    np.testing.assert_array_equal(predicted[0], predicted[1])
    np.testing.assert_allclose(predicted[0], model.predict([one])[0], atol=1e-4, rtol=0)
