"""s3-policy.json allows what the platform asks of S3, and nothing else; none gives a right on everything.

What is asked is read off the wire: a relay in front of a real S3 server notes each request while the storage,
Ray Train's folder and MLflow's artefacts are used as a run uses them.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import pytest

from deploy.made_cloud import DEPLOY, policy_actions, policy_text
from isoformer.storage import open_storage
from isoformer.training.ray_storage import ray_storage
from services import S3Server

PART_BYTES: Final = 6 << 20
"""More than a part of 5 MiB, S3's least, so that three of them make an upload in parts."""
REQUEST: Final = re.compile(rb"^(GET|HEAD|PUT|POST|DELETE) (/\S*) HTTP/1.1\r\n", re.MULTILINE)
OF_A_BUCKET: Final = {"GET": "s3:ListBucket", "HEAD": "s3:ListBucket", "POST": "s3:DeleteObject"}
OF_AN_OBJECT: Final = {
    "GET": "s3:GetObject",
    "HEAD": "s3:GetObject",
    "PUT": "s3:PutObject",
    "POST": "s3:PutObject",  # begins and ends an upload in parts
    "DELETE": "s3:DeleteObject",
}
BY_QUERY: Final = {
    ("DELETE", "uploadId"): "s3:AbortMultipartUpload",
    ("GET", "uploadId"): "s3:ListMultipartUploadParts",
    ("GET", "uploads"): "s3:ListBucketMultipartUploads",
    ("GET", "location"): "s3:GetBucketLocation",
}


def action(method: str, target: str) -> str:
    """What IAM asks of whoever sends this request."""
    parts = urlsplit(target)
    for name in parse_qs(parts.query, keep_blank_values=True):
        if (method, name) in BY_QUERY:
            return BY_QUERY[method, name]
    is_bucket = parts.path.strip("/").count("/") == 0
    return (OF_A_BUCKET if is_bucket else OF_AN_OBJECT)[method]


class Wire(socketserver.ThreadingTCPServer):
    """Hands bytes on between clients and a server as they come, and notes the action of every request."""

    daemon_threads = True

    def __init__(self, server: str) -> None:
        super().__init__(("127.0.0.1", 0), Connection)
        parts = urlsplit(server)
        self.upstream = (str(parts.hostname), int(parts.port or 80))
        self.seen: set[str] = set()


class Connection(socketserver.BaseRequestHandler):
    server: Wire

    def handle(self) -> None:
        with socket.create_connection(self.server.upstream) as upstream:
            threading.Thread(target=self._answer, args=(upstream,), daemon=True).start()
            while data := self.request.recv(1 << 16):
                for method, target in REQUEST.findall(data):
                    self.server.seen.add(action(method.decode(), target.decode()))
                upstream.sendall(data)

    def _answer(self, upstream: socket.socket) -> None:
        with contextlib.suppress(OSError):  # one of the two has hung up
            while data := upstream.recv(1 << 16):
                self.request.sendall(data)


@pytest.fixture
def asked(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The actions asked for so far."""
    with Wire(s3_server.endpoint) as wire:
        threading.Thread(target=wire.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{wire.server_address[1]}")
        yield wire.seen
        wire.shutdown()


def use_storage(root: str) -> None:
    storage = open_storage(root)
    assert not storage.exists("shards/one")
    assert storage.write_bytes("shards/one", b"12345678", if_absent=True)
    assert not storage.write_bytes("shards/one", b"other", if_absent=True)
    assert storage.list("shards/") == ["shards/one"]
    with storage.open_input("shards/one") as file:
        assert file.read(4) == b"1234"
    storage.delete("shards/one")


def use_ray_trains_folder(root: str) -> None:
    """A checkpoint in parts, listed, copied within the folder and removed."""
    path, files = ray_storage(open_storage(root), "runs/one/ray")
    files.create_dir(path)
    with files.open_output_stream(f"{path}/checkpoint") as out:
        for _ in range(3):
            out.write(bytes(PART_BYTES))
    with files.open_input_stream(f"{path}/checkpoint") as source:
        assert len(source.read()) == 3 * PART_BYTES
    files.delete_dir(path)


def use_mlflows_artefacts(root: str, folder: Path) -> None:
    """What `mlflow server --artifacts-destination` does for a run, and an upload that breaks off."""
    from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

    artefacts = S3ArtifactRepository(f"{root}/mlflow")
    (folder / "table.csv").write_bytes(bytes(2 * PART_BYTES))
    artefacts.log_artifact(str(folder / "table.csv"))
    assert [one.path for one in artefacts.list_artifacts()] == ["table.csv"]
    artefacts.download_artifacts("table.csv", str(folder))
    artefacts.delete_artifacts("table.csv")
    bucket, key = root.removeprefix("s3://").split("/", 1)
    with pytest.raises(OSError, match="the disk went away"):
        artefacts._get_s3_client().upload_fileobj(BreaksOff(), bucket, f"{key}/mlflow/broken")


class BreaksOff(io.RawIOBase):
    """A file whose second part cannot be read."""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if self.tell_bytes:
            raise OSError("the disk went away")
        self.tell_bytes = size
        return bytes(size)

    tell_bytes = 0


@pytest.mark.slow
def test_the_policy_is_what_the_platform_asks_of_s3(asked: set[str], s3_root: str, tmp_path: Path) -> None:
    use_storage(s3_root)
    use_ray_trains_folder(s3_root)
    use_mlflows_artefacts(s3_root, tmp_path)
    assert policy_actions("s3-policy.json") == asked


def test_objects_only_under_the_prefix_names_in_the_bucket_and_nothing_without_tls() -> None:
    objects, names, plain = json.loads(policy_text("s3-policy.json"))["Statement"]
    assert objects["Resource"] == "arn:aws:s3:::made-bucket/gtex/*"
    assert names["Condition"] == {"StringLikeIfExists": {"s3:prefix": ["gtex", "gtex/*"]}}
    assert (plain["Effect"], plain["Action"]) == ("Deny", "s3:*")
    assert plain["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


@pytest.mark.parametrize("name", sorted(path.name for path in DEPLOY.glob("*-policy.json")))
def test_no_right_is_given_on_everything(name: str) -> None:
    for statement in json.loads(policy_text(name))["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        if statement["Effect"] == "Allow":
            assert not [one for one in actions if one.endswith("*")]
            assert statement.get("Resource") != "*" or actions == ["ec2:DescribeInstances"]


def test_the_head_may_launch_and_end_only_what_carries_the_clusters_name() -> None:
    by_action: dict[str, list[Any]] = {}
    for statement in json.loads(policy_text("head-policy.json"))["Statement"]:
        for one in statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]:
            by_action.setdefault(one, []).append(statement)
    (end,) = by_action["ec2:TerminateInstances"]
    assert end["Condition"] == {"StringEquals": {"aws:ResourceTag/ray-cluster-name": "isoformer"}}
    launches = [one for one in by_action["ec2:RunInstances"] if "instance/*" in str(one["Resource"])]
    assert len(launches) == 1
    assert launches[0]["Condition"]["StringEquals"]["aws:RequestTag/ray-cluster-name"] == "isoformer"
    assert not re.search(r"iam::\d+:role/\*", policy_text("head-policy.json"))
