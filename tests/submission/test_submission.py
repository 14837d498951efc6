"""What is sent to a cluster, and what is refused before anything is sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from isoformer.cli import main
from isoformer.errors import ConfigError
from isoformer.submission import MOST_BYTES, Job, Jobs, checked_environment, staged


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["submit", *arguments])
        raise SystemExit(0)
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "my run.yaml"
    path.write_text("root: s3://bucket/data\n")
    return path


def test_the_package_and_the_configuration_travel_and_nothing_else(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "staged"
    folder.mkdir()
    job = Job(("embed", "--config", str(config), "--set", "embed.actors=8"), config)
    with staged(job, folder) as (files, size_bytes):
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert {
            "config.yaml",
            "isoformer/cli.py",
            "isoformer/encoders/weights/esm2-tiny/model.safetensors",
        } <= names
        assert {name.split("/")[0] for name in names} == {"config.yaml", "isoformer"}
        assert not [name for name in names if name.endswith(".pyc")]
        assert len(names) == files and 5e6 < size_bytes < MOST_BYTES
    assert (folder / "config.yaml").read_bytes() == config.read_bytes()
    assert job.entrypoint == "python -m isoformer embed --config config.yaml --set embed.actors=8"


def test_with_the_nodes_own_package_only_the_configuration_travels(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "staged"
    folder.mkdir()
    job = Job(("plan", f"--config={config}"), config, package="baked")
    with staged(job, folder) as (files, _):
        assert files == 1
    assert job.entrypoint == "python -m isoformer plan --config=config.yaml"


def test_more_than_ray_takes_is_refused_before_it_is_sent(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isoformer.submission.MOST_BYTES", 1 << 20)
    (tmp_path / "staged").mkdir()
    with (
        pytest.raises(ConfigError, match=r"the job would ship 1\d MB; allowed: 1"),
        staged(Job(("plan",)), tmp_path / "staged"),
    ):
        pass


def test_a_dry_run_says_what_would_be_sent(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, error = run(
        "sweep",
        "--config",
        str(config),
        "--resume",
        "--set",
        "sweep.trials=9",
        "--dry-run",
        "--json",
        capsys=capsys,
    )
    said = json.loads(out)
    assert status == 0 and "MB" in error
    assert (
        said["entrypoint"] == "python -m isoformer sweep --config config.yaml --resume --set sweep.trials=9"
    )
    assert said["files"] > 200


def test_what_only_the_cluster_knows_is_filled_in_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = "sweep.storage=postgresql://me:${STUDY_PASSWORD}@db/studies"
    sent = ("sweep", "--set", "root=/data", "--set", storage, "--dry-run", "--json")
    status, out, error = run(*sent, capsys=capsys)
    assert status == 0 and "checked on the cluster: ${STUDY_PASSWORD}" in " ".join(error.split())
    assert json.loads(out)["entrypoint"].endswith(f"--set '{storage}'"), "no shell fills it in on the way"
    monkeypatch.setenv("STUDY_PASSWORD", "open-sesame")
    status, out, error = run(*sent, capsys=capsys)
    assert status == 0 and "open-sesame" not in out + error and storage in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["embed", "--set", "root=data"], "root: 'data' is relative"),
        (["embed"], "root: 'isoformer-data' is relative"),
        (["demo"], "--output: 'demo-output' is relative"),
        (["embed", "--set", "root=/data", "--set", "embed.actorz=3"], "did you mean 'actors'?"),
        (["embed", "--nothing"], "No such option '--nothing'"),
        (["nothing"], "No such command 'nothing'"),
        (["explain", "nothing"], "No such command 'nothing'"),
        (["cluster", "up"], "cluster is no verb that runs as a job"),
        (["submit", "plan"], "submit is no verb that runs as a job"),
        (["logs"], "submit logs needs one job's ID"),
        (
            ["prepare", "--set", "root=/data", "--set", "prepare={route: table, table: t.csv}"],
            "prepare.table: 't.csv' is relative",
        ),
        (["plan", "--set", "root=/data", "--env", "MY_SECRET=x"], "--env MY_SECRET: looks like a secret"),
        (["plan", "--set", "root=/data", "--env", "A=mysql://me:pw@host/d"], "--env A: looks like a secret"),
        (["plan", "--set", "root=/data", "--env", "A"], "--env A: must be NAME=VALUE"),
        (
            ["sweep", "--set", "root=/data", "--set", "sweep.storage=mysql://me:open-sesame@host/d"],
            "sweep.storage=mysql://me:***@host/d: a password in a job's command",
        ),
        (["plan", "--set", "root=/data", "--address", "ray://head:10001"], "must be the dashboard's"),
        (
            ["plan", "--set", "root=/data", "--address", "http://10.0.0.1:8265"],
            "the token would travel unencrypted",
        ),
        (["plan", "--set", "root=/data", "--address", "http://127.0.0.1:9"], "no Ray cluster answers at"),
        (["plan", "--set", "root=/data"], "no cluster to submit to: give --address"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_before_anything_is_sent(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("ISOFORMER_CACHE", str(tmp_path))
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    status, _, error = run(*arguments, capsys=capsys)
    assert status == 2 and said in error
    assert "Traceback" not in error and "open-sesame" not in error


def test_plain_variables_are_taken() -> None:
    assert checked_environment(["AWS_REGION=eu-west-1", "A=b=c"]) == (
        ("AWS_REGION", "eu-west-1"),
        ("A", "b=c"),
    )


def test_output_that_was_shown_is_not_shown_again() -> None:
    """Ray tells a job's output from its beginning each time it is asked."""
    import asyncio

    class Client:
        async def tail_job_logs(self, name: str):
            for text in ("one\n", "two\n", "three\n")[: self.chunks]:
                yield text

    jobs, shown = object.__new__(Jobs), list[str]()
    jobs._client = Client()
    told = 0
    for jobs._client.chunks in (1, 1, 3):
        told = asyncio.run(jobs._tail("job", shown.append, told))
    assert "".join(shown) == "one\ntwo\nthree\n"
    assert asyncio.run(jobs._tail("job", shown.append, 6)) == 14
    assert shown[-2:] == ["o\n", "three\n"]
