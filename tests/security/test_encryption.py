"""Encryption that was asked for is asked for with every write, and its absence is an error."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from isoformer.errors import StorageError
from isoformer.ray_session import _worker_environment
from isoformer.s3_files import s3_file_system
from isoformer.s3_requests import _refusal
from isoformer.s3_settings import require_encrypted
from isoformer.storage import S3Storage, Storage, open_storage
from isoformer.training.ray_storage import ray_storage

BUCKET = "encrypted"


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    session = boto3.session.Session("any", "any")
    client = session.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    yield client
    server.stop()


@pytest.fixture(params=[("AES256", None), ("aws:kms", "arn:aws:kms:us-east-1:123456789012:key/of-ours")])
def storage(request: pytest.FixtureRequest, client: Any, monkeypatch: pytest.MonkeyPatch) -> Storage:
    kind, key = request.param
    monkeypatch.setenv("AWS_ENDPOINT_URL", client.meta.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    monkeypatch.setenv("ISOFORMER_S3_ENCRYPTION", kind)
    if key:
        monkeypatch.setenv("ISOFORMER_S3_KMS_KEY", key)
    return open_storage(f"s3://{BUCKET}/{kind.replace(':', '-')}")


def asked_of(client: Any, storage: Storage, key: str) -> dict[str, str]:
    assert isinstance(storage, S3Storage)
    head = client.head_object(Bucket=BUCKET, Key=f"{storage.prefix}/{key}")
    return {name: head[name] for name in ("ServerSideEncryption", "SSEKMSKeyId") if name in head}


def test_every_kind_of_write(client: Any, storage: Storage, tmp_path: Path) -> None:
    assert isinstance(storage, S3Storage)
    (tmp_path / "local").write_bytes(b"x" * 9_000_000)
    storage.write_bytes("put", b"1")
    assert storage.write_bytes("first", b"1", if_absent=True)
    assert not storage.write_bytes("first", b"2", if_absent=True)
    storage.put_file(tmp_path / "local", "file")
    pickle.loads(pickle.dumps(storage)).write_bytes("from a worker", b"1")  # noqa: S301
    for key in ("put", "first", "file", "from a worker"):
        assert asked_of(client, storage, key) == storage.encryption, key


def test_ray_trains_files(client: Any, storage: Storage) -> None:
    path, files = ray_storage(storage, "runs/one/ray")
    files = pickle.loads(pickle.dumps(files))  # noqa: S301
    files.create_dir(f"{path}/a/b", recursive=True)
    for name in ("a/state.json", "a/b/1", "c"):
        with files.open_output_stream(f"{path}/{name}") as out:
            out.write(name.encode())
        assert asked_of(client, storage, f"runs/one/ray/{name}") == storage.encryption  # type: ignore[attr-defined]
    found = files.get_file_info(fs.FileSelector(path, recursive=True))
    kinds = {info.path.removeprefix(f"{path}/"): info.type.name for info in found}
    assert kinds == {
        "a": "Directory",
        "a/b": "Directory",
        "a/b/1": "File",
        "a/state.json": "File",
        "c": "File",
    }
    assert [info.base_name for info in files.get_file_info(fs.FileSelector(path))] == ["a", "c"]
    with files.open_input_file(f"{path}/a/b/1") as file:
        assert file.read() == b"a/b/1"
    files.copy_file(f"{path}/c", f"{path}/d")
    files.move(f"{path}/d", f"{path}/e")
    assert asked_of(client, storage, "runs/one/ray/e") == storage.encryption  # type: ignore[attr-defined]
    files.delete_dir(f"{path}/a")
    assert storage.list("runs/one/ray/") == ["runs/one/ray/c", "runs/one/ray/e"]
    assert files.get_file_info(f"{path}/a").type == fs.FileType.NotFound
    with pytest.raises(FileNotFoundError):
        files.open_input_stream(f"{path}/gone")
    with pytest.raises(FileNotFoundError):
        files.get_file_info(fs.FileSelector(f"{path}/gone"))


def test_a_folder_is_copied_through_it(client: Any, storage: Storage, tmp_path: Path) -> None:
    """As Ray Train puts a checkpoint, and gets it back."""
    assert isinstance(storage, S3Storage)
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "w").write_bytes(b"weights")
    bucket, local = s3_file_system(storage), fs.LocalFileSystem()
    path = f"{BUCKET}/{storage.prefix}/copied"
    fs.copy_files(str(tmp_path / "in"), path, source_filesystem=local, destination_filesystem=bucket)
    fs.copy_files(path, str(tmp_path / "out"), source_filesystem=bucket, destination_filesystem=local)
    assert (tmp_path / "out" / "deep" / "w").read_bytes() == b"weights"
    assert asked_of(client, storage, "copied/deep/w") == storage.encryption


def test_nothing_is_asked_where_nothing_is_set(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SeaweedFS, which takes objects as it always did."""
    storage = open_storage(s3_root)
    assert isinstance(storage, S3Storage) and storage.encryption == {}
    assert storage.write_bytes("k", b"v", if_absent=True) and storage.read_bytes("k") == b"v"
    assert not isinstance(ray_storage(storage, "x")[1], fs.PyFileSystem)


@pytest.mark.parametrize(
    ("kind", "key", "said"),
    [
        ("aes256", None, r"ISOFORMER_S3_ENCRYPTION is 'aes256'; allowed: AES256, aws:kms"),
        ("AES256", "k", r"ISOFORMER_S3_KMS_KEY goes with ISOFORMER_S3_ENCRYPTION=aws:kms"),
        ("", "k", r"ISOFORMER_S3_KMS_KEY goes with"),
    ],
)
def test_what_is_not_allowed(kind: str, key: str | None, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOFORMER_S3_ENCRYPTION", kind)
    if key is not None:
        monkeypatch.setenv("ISOFORMER_S3_KMS_KEY", key)
    with pytest.raises(StorageError, match=said):
        open_storage("s3://bucket/x")


def test_a_server_that_does_not_encrypt_is_an_error() -> None:
    require_encrypted({"ServerSideEncryption": "AES256"}, {"ServerSideEncryption": "AES256"}, "s3://b/k")
    for answer in ({}, {"ServerSideEncryption": "AES256"}):
        with pytest.raises(StorageError, match=r"s3://b/k: was written, but .* with aws:kms"):
            require_encrypted(answer, {"ServerSideEncryption": "aws:kms"}, "s3://b/k")


def test_a_key_that_cannot_be_used_is_named() -> None:
    for code, status in (("KMS.NotFoundException", 400), ("KMS.AccessDeniedException", 403)):
        assert "check ISOFORMER_S3_KMS_KEY" in _refusal(code, status, "bucket", "AWS S3")


def test_workers_of_a_cluster_ask_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("ISOFORMER_S3_ENCRYPTION", "AES256")
    assert _worker_environment() == {"HF_HUB_OFFLINE": "1", "ISOFORMER_S3_ENCRYPTION": "AES256"}
    job = '{"runtime_env": {"env_vars": {"ISOFORMER_S3_ENCRYPTION": "AES256"}}}'
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", job)
    assert _worker_environment() == {"HF_HUB_OFFLINE": "1"}, "Ray refuses to be told twice"
