"""The MLflow model: the numbers of the run, no pickle, and a served model that says what it cannot read."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from isoformer.cli import main
from isoformer.errors import ConfigError, InputError, StorageError
from isoformer.sequence_model import SequenceModel
from isoformer.tracking import TrackingConfig
from predict.trained import transcripts_of

START_SECONDS, ANSWER_SECONDS = 180, 60
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def exported(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the verb makes."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    main(["export", str(folder), "--mlflow", "--with-weights", "--set", f"root={root}", "--set", "run=one"])
    return folder


def frame_of(root: Path, count: int = 6) -> pd.DataFrame:
    rows = [one for one in transcripts_of(root) if one.protein is None or set(one.protein) != {"X"}]
    return pd.DataFrame([{"dna": one.dna, "rna": one.rna, "protein": one.protein} for one in rows[-count:]])


def expected_of(model: SequenceModel, root: Path, count: int = 6) -> Any:
    rows = [one for one in transcripts_of(root) if one.protein is None or set(one.protein) != {"X"}]
    return model.predict(rows[-count:])


def test_it_predicts_what_the_run_predicts(exported: Path, model: SequenceModel, root: Path) -> None:
    import mlflow.pyfunc

    loaded = mlflow.pyfunc.load_model(str(exported))
    frame = frame_of(root)
    predicted = loaded.predict(frame)
    assert list(predicted.columns) == ["Liver", "Brain"] and set(predicted.dtypes) == {np.dtype("float64")}
    np.testing.assert_allclose(predicted, expected_of(model, root), atol=TOLERANCE, rtol=0)
    some = frame.drop(columns="dna").assign(rna=[*frame["rna"][:-1], None])
    assert np.isfinite(loaded.predict(some).to_numpy()).all()
    assert frame["protein"].isna().any()
    assert loaded.metadata.signature.inputs.input_names() == ["dna", "rna", "protein"]
    assert loaded.metadata.metadata["unit"] == "natural log(1 + TPM)"
    assert loaded.metadata.load_input_example(str(exported)).shape == (1, 3)


def test_nothing_is_pickled(exported: Path) -> None:
    """`__pycache__` is of Python's making, where another test has loaded the model."""
    files = [path for path in exported.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    suffixes = {path.suffix for path in files}
    assert suffixes == {"", ".json", ".yaml", ".txt", ".py", ".safetensors"}


def test_the_model_opens_by_its_folder_and_from_the_registry(
    exported: Path, model: SequenceModel, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transcripts = transcripts_of(root)[-3:]
    expected = model.predict(transcripts)
    np.testing.assert_array_equal(SequenceModel.open(str(exported)).predict(transcripts), expected)
    capsys.readouterr()
    places = ["--set", f"root={root}", "--set", "run=one", "--set", f"tracking.folder={tmp_path}"]
    main(["export", "--register", "made", "--json", *places])
    made = json.loads(capsys.readouterr().out)
    assert made["written to"] == "models:/made/1"
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    again = SequenceModel.open("models:/made/1", tracking_uri=uri)
    np.testing.assert_array_equal(again.predict(transcripts), expected)
    with pytest.raises(StorageError, match="models:/made/2: cannot be had from MLflow"):
        SequenceModel.open("models:/made/2", tracking_uri=uri)


def test_the_best_version_is_predicted_with_by_its_alias(
    model: SequenceModel, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--set", f"root={root}", "--set", "run=one", "--set", f"tracking.folder={tmp_path}", "--json"]
    for version in (1, 2):
        capsys.readouterr()
        main(["export", "--register", "served", "--alias", "best", *places])
        made = json.loads(capsys.readouterr().out)
        assert (made["written to"], made["also"]) == (f"models:/served/{version}", "models:/served@best")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert client.get_model_version_by_alias("served", "best").version == 2
    fasta, table = tmp_path / "some.fa", tmp_path / "predicted.csv"
    fasta.write_text(">ENST1\n" + "ACGTTGCA" * 40 + "\n")
    main(["predict", str(fasta), "--output", str(table), "--model", "models:/served@best", *places])
    assert json.loads(capsys.readouterr().out)["predicted"] == 1
    columns = [f"log1p_tpm.{name}" for name in model.target_names]
    assert np.isfinite(pd.read_csv(table)[columns].to_numpy()).all()


@pytest.mark.parametrize("alias", ["v2", "latest", "two words", ""])
def test_an_alias_that_mlflow_does_not_take_is_refused_before_anything_is_logged(
    model: SequenceModel, tmp_path: Path, alias: str
) -> None:
    from isoformer.predict.pyfunc import log_model

    with pytest.raises(ConfigError, match="must be letters, digits"):
        log_model(model, tracking=TrackingConfig(folder=str(tmp_path)), registered_name="a", alias=alias)
    assert not list(tmp_path.iterdir())


BAD: list[tuple[dict[str, list[Any]], str]] = [
    ({"rna": ["ACGT", "ACGJ"]}, r"row 1, field 'rna': .*position 4 .*got 'J'"),
    ({"rna": ["ACGT"], "protein": [""]}, r"row 0, field 'protein': not a sequence: got ''; allowed"),
    ({"rna": ["   "]}, r"row 0, field 'rna': not a sequence: got '   '"),
    ({"rna": ["ACGT", None]}, r"row 1: no sequence; allowed: at least one of dna, rna, protein"),
    ({"dna": ["ACGT"]}, r"row 0, field 'dna': window_too_small: got 'ACGT'"),
    ({"protein": ["MK!"]}, r"row 0, field 'protein': .*position 3 .*got '!'"),
    ({"rna": ["NNNN"]}, r"row 0, field 'rna': rna_unknown: 100% of the RNA's bases are N"),
    ({"gene": ["ACGT"]}, r"no column of sequences; .*allowed: dna, rna, protein"),
    ({}, r"no column of sequences; the columns are none; allowed: dna, rna, protein"),
]


@pytest.mark.parametrize(("columns", "expected"), BAD)
def test_what_cannot_be_read_is_named(
    model: SequenceModel, columns: dict[str, list[Any]], expected: str
) -> None:
    from isoformer.predict.pyfunc import predicted_frame

    with pytest.raises(InputError, match=expected):
        predicted_frame(model, pd.DataFrame(columns))


def test_no_rows_are_no_predictions(model: SequenceModel) -> None:
    from isoformer.predict.pyfunc import predicted_frame

    assert predicted_frame(model, pd.DataFrame({"rna": []})).shape == (0, 2)


@pytest.fixture(scope="module")
def address(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mlflow models serve` on loopback; stopped with its whole process group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(exported)]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=environment, cwd=log.parent, start_new_session=True
        )
    try:
        wait_until(lambda: is_up(port), process, log)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


def wait_until(is_ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_ready():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.5)


def is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def post(address: str, body: Any) -> tuple[int, Any]:
    """Status and decoded answer."""
    request = urllib.request.Request(
        address, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def split(columns: dict[str, list[Any]]) -> dict[str, Any]:
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return {"dataframe_split": {"columns": list(columns), "data": rows}}


@pytest.mark.slow
def test_it_is_served(address: str, model: SequenceModel, root: Path) -> None:
    frame = frame_of(root).astype(object).where(lambda cell: cell.notna(), None)
    status, answer = post(address, split(frame.to_dict("list")))
    assert status == 200, answer
    predicted = pd.DataFrame(answer["predictions"])
    assert list(predicted.columns) == ["Liver", "Brain"]
    np.testing.assert_allclose(predicted, expected_of(model, root), atol=TOLERANCE, rtol=0)
    for columns, expected in BAD:
        status, answer = post(address, split(columns))
        assert status == 400, (columns, answer)
        assert answer["error_code"] in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"), answer
        matches = pytest.raises(InputError, match=expected)
        with matches:
            raise InputError(answer["message"])
    for body in ({"dataframe_split": {"columns": ["rna"], "data": [[1]]}}, {"nonsense": 1}, []):
        assert post(address, body)[0] == 400
    status, again = post(address, split({"protein": ["MKVLAW"]}))
    assert status == 200 and np.isfinite(list(again["predictions"][0].values())).all()
