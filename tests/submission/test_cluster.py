"""Jobs on a real two-node cluster: by our door and by Ray's own, with the token and without."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
import pytest

from isoformer.storage import open_storage
from services import S3Server
from submission.conftest import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TABLE = "transcript_id,gene_id,rna,protein,liver\nt1,g1,ACGUACGUACGU,MKT,1.0\nt2,g2,GGGGCCCCAAAA,MKV,2.0\n"


@pytest.fixture(scope="module")
def root(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    return s3_server.root()


@pytest.fixture(scope="module")
def config(root: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    (folder / "table.csv").write_text(TABLE)
    path = folder / "run.yaml"
    path.write_text(
        f"root: {root}\n"
        f"prepare: {{route: table, table: {folder / 'table.csv'}, targets: [liver],\n"
        "  split: {allow_empty: true}}\n"
        "embed: {encoders: [{name: composition-rna}, {name: composition-protein}]}\n"
    )
    return path


def test_verbs_go_from_here_and_from_rays_own_command(cluster: Cluster, config: Path, root: str) -> None:
    ours = cluster.isoformer("submit", "prepare", "--config", str(config))
    assert ours.returncode == 0, ours.stderr + ours.stdout
    assert "transcripts" in ours.stdout, "the job's output is shown"
    assert "ships" in ours.stderr and "MB" in ours.stderr
    manifest = json.loads(open_storage(root).read_bytes("transcripts/manifest.json"))
    assert manifest["counts"]["rows_out"] == 2

    rays = cluster.ray_job_submit("python", "jobs/embed.py", "--set", f"root={root}", "--set", ENCODERS)
    assert rays.returncode == 0, rays.stderr + rays.stdout
    assert {key.split("/")[1] for key in open_storage(root).list("embeddings/")} == {"rna", "protein"}

    again = cluster.isoformer("submit", "embed", "--config", str(config), "--json")
    assert (again.returncode, json.loads(again.stdout)["status"]) == (0, "SUCCEEDED"), again.stderr


ENCODERS = "embed.encoders=[{name: composition-rna}, {name: composition-protein}]"


def test_the_jobs_exit_status_is_the_commands(cluster: Cluster) -> None:
    failed = cluster.isoformer("submit", "plan", "--set", "root=/nothing/here")
    assert failed.returncode == 2
    assert "holds no transcripts dataset" in failed.stdout
    listed = json.loads(cluster.isoformer("submit", "ls", "--json").stdout)["jobs"]
    assert listed[0]["status"] == "FAILED" and "plan" in listed[0]["entrypoint"]


def test_a_job_is_detached_followed_and_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    sent = cluster.isoformer(
        "submit", "demo", "--output", str(tmp_path), "--detach", "--json", "--id", "mine"
    )
    assert json.loads(sent.stdout)["id"] == "mine", sent.stderr
    taken = cluster.isoformer("submit", "demo", "--output", str(tmp_path), "--detach", "--id", "mine")
    assert taken.returncode == 2 and "already" in taken.stderr and "Traceback" not in taken.stderr
    deadline = time.monotonic() + 120
    while "RUNNING" not in cluster.isoformer("submit", "status", "mine").stdout:
        assert time.monotonic() < deadline
    assert cluster.isoformer("submit", "cancel", "mine").returncode == 0
    followed = cluster.isoformer("submit", "logs", "mine", "--json")
    assert json.loads(followed.stdout)["status"] == "STOPPED"
    assert followed.returncode != 0


@pytest.mark.parametrize("token", ["missing", "wrong", "disabled"])
def test_nothing_is_taken_without_the_token(cluster: Cluster, tmp_path: Path, token: str) -> None:
    (tmp_path / "wrong").write_text("0" * 64)
    changes = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / token)}
    if token == "disabled":
        changes = {"RAY_AUTH_MODE": "disabled"}
    ours = cluster.isoformer("submit", "plan", "--set", "root=/data", **changes)
    assert ours.returncode == 2
    assert "refuses the submission" in ours.stderr and "RAY_AUTH_TOKEN_PATH" in ours.stderr
    rays = cluster.ray_job_submit("true", **changes)
    assert rays.returncode != 0


def test_every_port_is_on_loopback(cluster: Cluster) -> None:
    owner = psutil.Process(cluster.pid)
    listening = [
        connection.laddr.ip
        for process in (owner, *owner.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 10
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    token = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o777 == 0o600


def test_it_is_one_a_user_and_ends_whole(cluster: Cluster) -> None:
    """Runs last."""
    assert cluster.isoformer("cluster", "status").returncode == 0
    second = cluster.isoformer("cluster", "up")
    assert second.returncode == 2 and "is up already" in second.stderr
    family = psutil.Process(cluster.pid).children(recursive=True)
    assert cluster.isoformer("cluster", "down").returncode == 0
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    assert cluster.isoformer("cluster", "status").returncode == 1
