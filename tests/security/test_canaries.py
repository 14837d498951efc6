"""Secrets are put in at every door, everything is run, and everything that is left is searched for them.

The root is a bucket on an S3 server that encrypts, so that the same run shows that every object was asked
to be encrypted, those that Ray Train writes included.
"""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer

BUCKET: Final = "canaries"
SECRETS: Final = {
    name: f"c4nary/{name.lower()}/Pa55+word="
    for name in (
        "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
        "HF_TOKEN", "DB_PASSWORD", "STUDY_PASSWORD", "OVERRIDDEN", "SIGNATURE",
    )
}  # fmt: skip
RAY_TOKEN: Final = "c4nary-ray-token-0123456789abcdef"

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def forms(secret: str) -> dict[str, bytes]:
    """A secret as it is, URL-encoded, and in base64 at each of the three alignments."""
    found = {"raw": secret.encode(), "url": quote(secret, safe="").encode()}
    for shift in range(3):
        coded = base64.b64encode(b"." * shift + secret.encode()).rstrip(b"=")
        found[f"base64+{shift}"] = coded[4 if shift else 0 : -4]
    return found


def leaks(places: Mapping[str, bytes]) -> list[str]:
    """Every secret in every place, by name."""
    searched = {(name, form): text for name, secret in {**SECRETS, "RAY_TOKEN": RAY_TOKEN}.items()
                for form, text in forms(secret).items()}  # fmt: skip
    return [f"{name} ({form}) in {place}" for place, data in places.items()
            for (name, form), text in searched.items() if text in data]  # fmt: skip


def test_a_planted_secret_is_found() -> None:
    for name, secret in SECRETS.items():
        for text in (
            f"a {secret}",
            quote(secret, safe=""),
            base64.b64encode(f"user:{secret}".encode()).decode(),
        ):
            assert any(line.startswith(name) for line in leaks({"x": text.encode()})), text


class Run:
    """What one run of all doors left behind."""

    def __init__(self, folder: Path, done: subprocess.CompletedProcess[str], client: Any) -> None:
        self.folder, self.done, self.client = folder, done, client
        last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}
        self.statuses: list[int] = last.get("statuses", [])
        self.session = Path(last.get("session", folder / "none"))

    def object_keys(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def places(self) -> dict[str, bytes]:
        objects = {
            f"s3://{key}": self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            for key in self.object_keys()
        }
        files = {
            str(path): path.read_bytes()
            for folder in (self.folder / "work", self.session.resolve())
            for path in folder.rglob("*")
            if path.is_file() and not path.is_symlink()
        }
        said = {"stdout": self.done.stdout.encode(), "stderr": self.done.stderr.encode()}
        return {**objects, **files, **said}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("canaries")
    (folder / "work").mkdir()
    ray_folder = Path(tempfile.mkdtemp(prefix="sec-"))  # a socket's path has few letters
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.session.Session("any", "any").client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    try:
        yield Run(folder, all_doors(folder, ray_folder, endpoint), client)
    finally:
        server.stop()
        shutil.rmtree(ray_folder, ignore_errors=True)


def all_doors(folder: Path, ray_folder: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    """Every verb at the smallest scale, then the same doors with addresses that fail."""
    work = folder / "work"
    write_table(folder / "table.csv")
    config = folder / "run.yaml"  # outside of what is searched: it may name variables, and holds no secret
    config.write_text(yaml.safe_dump(settings(folder, work)))
    (folder / "token").write_text(RAY_TOKEN)
    (folder / "task.json").write_text(json.dumps({"verbs": verbs(config, work)}))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {
        name: secret for name, secret in SECRETS.items() if name not in ("OVERRIDDEN", "SIGNATURE")
    }
    environment |= {
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "2", "MLFLOW_TRACKING_USERNAME": "anna",
        "ISOFORMER_S3_ENCRYPTION": "AES256", "RAY_TMPDIR": str(ray_folder), "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "ISOFORMER_CACHE": str(folder / "work" / "cache"),
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, str(Path(__file__).parent / "doors.py"), str(folder / "task.json")],
        cwd=work, env=environment, capture_output=True, text=True, timeout=540,
    )  # fmt: skip


def settings(folder: Path, work: Path) -> dict[str, Any]:
    return {
        "root": f"s3://{BUCKET}/root",
        "prepare": {"route": "table", "table": str(folder / "table.csv"), "split": {"allow_empty": True}},
        "embed": {"encoders": [{"name": "composition-rna", "resolution": "pooled"}]},
        "train": {"epochs": 1, "model": {"modalities": ["rna"]}},
        "sweep": {"study": "one", "trials": 1, "epochs": 1},
        "tracking": {"folder": str(work / "tracking"), "close_seconds": 20, "retry_seconds": 0.2},
    }


def write_table(path: Path) -> None:
    letters = random.Random(0)
    rows = [f"T{n},G{n},{''.join(letters.choices('ACGT', k=90))},{n % 7},{n % 3}" for n in range(40)]
    path.write_text("\n".join(["transcript_id,gene_id,rna,labels_0,labels_1", *rows]) + "\n")


GOOD: Final = 12
"""Of the verbs below, the first so many must end well."""


def verbs(config: Path, work: Path) -> list[list[str]]:
    given = ["--config", str(config)]
    database = "postgresql://anna:${DB_PASSWORD}@127.0.0.1:9/runs"
    signed = f"https://b.example/k?X-Amz-Signature={SECRETS['SIGNATURE']}"
    return [
        ["prepare", *given, "--json"],
        ["plan", *given],
        ["embed", *given],
        ["train", *given, "--json"],
        ["evaluate", *given, "--no-ablation", "--json"],
        ["sweep", *given],
        ["track", "status", *given, "--json"],
        [
            "train",
            *given,
            "--set",
            "run=second",
            "--set",
            "train.seed=1",
            "--set",
            f"tracking.uri={database}",
        ],
        ["report", *given, "--output", str(work / "report.html")],
        ["compare", "final", "second", *given, "--output", str(work / "compare.html")],
        ["export", str(work / "bundle"), *given],
        ["export", "--register", "exported", *given],
        # doors that are shut
        ["doctor", *given, "--set", f"tracking.uri={database}", "--json"],
        ["track", "status", *given, "--set", f"tracking.uri={database}", "--json"],
        ["track", "status", *given, "--set", "tracking.uri=http://127.0.0.1:9"],
        ["sweep", *given, "--set", "sweep.storage=postgresql://anna:${STUDY_PASSWORD}@127.0.0.1:9/s"],
        ["sweep", *given, "--set", f"sweep.storage=postgresql://anna:{SECRETS['OVERRIDDEN']}@127.0.0.1:9/s"],
        ["sweep", *given, "--set", f"sweep.warm_start=['postgresql://anna:{SECRETS['OVERRIDDEN']}@h/s#x']"],
        ["train", *given, "--set", f"tracking.uri=https://anna:{SECRETS['OVERRIDDEN']}@h"],
        ["prepare", *given, "--set", f"root=s3://AKIA:{SECRETS['OVERRIDDEN']}@{BUCKET}/x"],
        ["prepare", *given, "--set", f"prepare.table={signed}"],
        ["predict", signed, *given, "--output", str(work / "out.csv")],
        ["predict", "in.csv", *given, "--model", signed, "--output", str(work / "out.csv")],
        ["weights", "pull", "hf:nobody/nothing", *given],
        ["doctor", *given, "--set", f"ray.address=ray://anna:{SECRETS['OVERRIDDEN']}@127.0.0.1:9"],
        ["prepare", *given, "--set", "root=s3://no-such-bucket/x"],
    ]


def test_every_door_opened_or_refused_in_a_line(run: Run) -> None:
    assert run.done.returncode == 0, run.done.stderr[-3000:]
    assert run.statuses[:GOOD] == [0] * GOOD, run.done.stderr[-6000:]
    assert set(run.statuses[GOOD:]) <= {0, 1, 2} and run.statuses.count(2) >= 8
    assert "Traceback" not in run.done.stderr, run.done.stderr[-6000:]


def test_no_secret_is_left_anywhere(run: Run) -> None:
    places = run.places()
    names = " ".join(places)
    for expected in (
        "runs/final/run.json",
        "studies/one/",
        "tracking/mlflow.db",
        "tracking-journal",
        "raylet",
    ):
        assert expected in names, f"{expected} was not searched"
    assert leaks(places) == []


def test_every_object_was_asked_to_be_encrypted(run: Run) -> None:
    heads = {key: run.client.head_object(Bucket=BUCKET, Key=key) for key in run.object_keys()}
    assert len(heads) > 15
    plain = [key for key, head in heads.items() if head.get("ServerSideEncryption") != "AES256"]
    assert plain == []
