"""The command line as a user meets it: help is quick, mistakes are one clear line, JSON is JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import ray.exceptions

from isoformer.cli import _users_error, commands, main
from isoformer.errors import InputError, StorageError

VERBS = {
    "benchmark", "compare", "demo", "doctor", "embed", "encoders", "evaluate", "explain", "export", "plan",
    "predict", "prepare", "pretrain", "report", "store", "sweep", "track", "train", "weights",
}  # fmt: skip
CLIENT_ONLY = {"cluster", "dashboard", "submit"}
JOBS = Path(__file__).resolve().parents[2] / "jobs"


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
        raise SystemExit(0)
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_every_verb_has_a_command_and_a_job() -> None:
    assert set(commands.commands) == VERBS | CLIENT_ONLY
    assert {path.stem for path in JOBS.glob("*.py")} == VERBS


def test_help_does_not_import_the_heavy_libraries() -> None:
    code = "import sys; from isoformer.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit(str({'torch', 'ray', 'mlflow', 'transformers'} & set(sys.modules) or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert "prepare" in done.stdout


def test_unknown_key_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, error = run("plan", "--set", "embed.token_buget=3", capsys=capsys)
    assert status == 2
    assert "unknown key 'embed.token_buget'; did you mean 'token_budget'?" in error
    assert "Traceback" not in error


def test_missing_configuration_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, error = run("plan", "--config", "none.yaml", capsys=capsys)
    assert (status, error) == (2, "error: none.yaml: cannot be read: No such file or directory\n")


def test_plan_without_a_dataset_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, error = run("plan", "--set", f"root={tmp_path}", capsys=capsys)
    assert status == 2
    assert str(tmp_path) in error
    assert "prepare" in error


def test_prepare_without_inputs_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_local: None
) -> None:
    status, _, error = run("prepare", "--set", f"root={tmp_path}", capsys=capsys)
    assert (status, error.count("\n")) == (2, 1)
    assert "no `prepare` section" in error


def test_store_ls_of_an_empty_root_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run("store", "ls", "--json", "--set", f"root={tmp_path}", capsys=capsys)
    assert status == 0
    assert json.loads(out) == {"root": str(tmp_path), "datasets": []}


def test_doctor_passes_here_and_reports_every_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_local: None
) -> None:
    status, out, _ = run("doctor", "--json", "--set", f"root={tmp_path}", capsys=capsys)
    checks = json.loads(out)["checks"]
    assert status == 0, checks
    seen = {(check["where"], check["name"]) for check in checks}
    assert {
        ("driver", "storage"),
        ("worker", "storage"),
        ("driver", "tracking"),
        ("worker", "tracking"),
    } <= seen
    assert not [path for path in (tmp_path / ".doctor").glob("*")]


def test_doctor_names_what_is_wrong_and_how_to_mend_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_local: None
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder is needed")
    settings = ["--set", f"root={blocked / 'root'}", "--set", "tracking.uri=http://127.0.0.1:9"]
    status, out, _ = run("doctor", "--json", *settings, capsys=capsys)
    failed = {check["name"]: check for check in json.loads(out)["checks"] if not check["passed"]}
    assert status == 1
    assert set(failed) == {"storage", "tracking"}
    assert all(check["mend"] for check in failed.values())
    assert "127.0.0.1:9" in failed["tracking"]["found"]


def test_an_error_of_ours_is_found_inside_rays() -> None:
    ours = InputError("negative TPM", file="x.tsv", line=3)
    task = ray.exceptions.RayTaskError("prepare", "traceback", ours)
    assert _users_error(task) is ours
    assert _users_error(ValueError("a bug")) is None


def test_an_error_of_ours_is_found_as_the_cause() -> None:
    ours = StorageError("full")
    try:
        raise RuntimeError("worker died") from ours
    except RuntimeError as error:
        assert _users_error(error) is ours
