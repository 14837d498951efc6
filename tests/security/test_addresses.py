"""Names, keys and addresses that lead out of the root, or mean something else than they seem, are refused."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isoformer.config import build
from isoformer.embeddings.store import EmbeddingDataset
from isoformer.encoders.weights_manifest import parse_manifest, weight_map
from isoformer.encoders.weights_store import current_version, find_manifest, hub_repository
from isoformer.errors import ConfigError, EncoderError, InputError, StorageError
from isoformer.manifest import MANIFEST_KEY, read_manifest
from isoformer.plain_text import warn_of_plain_text
from isoformer.settings import Settings
from isoformer.storage import LocalStorage, S3Storage, Storage, open_storage
from isoformer.sweep.trial import unpack_checkpoint
from isoformer.tracking import TrackingConfig, local_path
from isoformer.tracking.sink import MlflowSink
from isoformer.training.runs import RunFolder
from tiny_dataset import write_dataset

OUTSIDE = ["../x", "a/../../x", "..", "/etc/passwd", "a\x00b", "a\nb", ""]
NAMES = ["../x", "a/b", "..", ".hidden", "-rf", "a\x00b", "a\nb", "", "x" * 9999 + "/", "ü"]
ROOTS = [
    "", "s3://", "s3:///prefix", "s3://bucket/../other", "s3://bucket/a/./b", "s3://bucket/a?versionId=1",
    "s3://bucket/a#b", "s3://KEY:SECRET@bucket/a", "s3://bucket:80/a", "s3://buc%2fket/a", "s3://b\nucket/a",
    "file://elsewhere/share", "file:///a?b=c", "file:///a#b", "file:///a%00b", "folder\x00", "gs://bucket/a",
    "https://bucket.s3.example/a", "S3://bucket/a", "ftp://host/a",
]  # fmt: skip


@pytest.mark.parametrize("root", ROOTS)
def test_roots_that_are_not_allowed(root: str) -> None:
    with pytest.raises(StorageError, match=r"allowed: |a bucket and a prefix only"):
        open_storage(root)


@pytest.mark.parametrize("root", ["file://localhost/a%20b/c%23d", "file:///a%20b/c%23d", "/a b/c#d"])
def test_a_local_root_is_one_place_however_it_is_written(root: str) -> None:
    assert open_storage(root).uri == "/a b/c#d" == str(local_path(root))


@pytest.mark.parametrize("key", OUTSIDE)
@pytest.mark.parametrize("kind", ["local", "s3"])
def test_keys_lead_nowhere_else(key: str, kind: str, tmp_path: Path) -> None:
    unreachable = S3Storage("bucket", "prefix", "http://127.0.0.1:9")
    storage: Storage = LocalStorage(tmp_path / "root") if kind == "local" else unreachable
    calls: list[Callable[[str], object]] = [
        storage.read_bytes, storage.exists, storage.size_bytes, storage.stamp, storage.open_input,
        storage.delete, lambda key: storage.write_bytes(key, b""),
        lambda key: storage.put_file(Path(__file__), key),
        lambda key: storage.download(key, tmp_path / "out"),
    ]  # fmt: skip
    for call in [*calls, storage.list] if key else calls:
        with pytest.raises(StorageError, match="is no key"):
            call(key)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["run", "sweep.study", "pretrain.name"])
def test_names_are_letters_digits_dots_and_dashes(key: str, name: str) -> None:
    section, _, leaf = key.rpartition(".")
    data: dict[str, Any] = {section: {leaf: name}} if section else {leaf: name}
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        build(Settings, data)


def test_a_name_longer_than_a_file_may_be_is_an_error_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"File name too long$"):
        open_storage(tmp_path).write_bytes(f"runs/{'x' * 300}/config.yaml", b"")


@pytest.mark.parametrize("name", ["../../outside", "a\x00b"])
def test_a_run_of_the_command_line_stays_under_the_root(name: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is no key"):
        RunFolder(open_storage(tmp_path), name).settings()


def test_a_pointer_out_of_a_run_deletes_nothing(tmp_path: Path) -> None:
    """resume/latest.json names the checkpoint that is deleted when the next one is there."""
    (tmp_path / "precious").write_text("keep")
    folder = RunFolder(open_storage(tmp_path / "root"), "run")
    pointer = json.dumps({"position": "../../../.."}).encode()
    folder.storage.write_bytes("runs/run/resume/latest.json", pointer)
    with pytest.raises(StorageError, match=r"is no key|latest\.json"), folder.newest_checkpoint():
        pass
    with pytest.raises(StorageError, match="is no key"):
        folder.delete("resume/../../../")
    assert (tmp_path / "precious").read_text() == "keep"


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "..\x00"])
def test_a_manifest_lists_shards_of_its_own_folder(name: str, tmp_path: Path) -> None:
    manifest = write_dataset(str(tmp_path), shards=1, genes_per_shard=1)
    changed = manifest.model_copy(update={"shards": [manifest.shards[0].model_copy(update={"name": name})]})
    storage = open_storage(tmp_path)
    storage.write_bytes(MANIFEST_KEY, changed.model_dump_json().encode())
    with pytest.raises(StorageError, match="not a manifest"):
        read_manifest(storage)


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "a/x.safetensors", ".x", "a\\x", ""])
def test_weights_name_plain_files_only(name: str, tmp_path: Path) -> None:
    file = {"bytes": 1, "sha256": "0"}
    stated = {"format": "isoformer-weights-1", "repository": "a/b", "commit": None, "licence": "x"}
    data = json.dumps({**stated, "digest": "0", "files": {name: file}}).encode()
    with pytest.raises(EncoderError, match="must be a plain file name"):
        parse_manifest(data, "manifest.json")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(EncoderError, match=r"must be a plain file name|must be a \.safetensors file"):
        weight_map(index)


@pytest.mark.parametrize("name", ["hf:../x", "hf:a/../b", "hf:a/b/c", "hf:/etc", "hf:a b/c", "hf:-x/y\n"])
def test_repositories_are_two_plain_names(name: str) -> None:
    assert hub_repository(name) is None


def test_a_version_out_of_the_weights_is_refused(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.write_bytes("weights/a/b/current.json", json.dumps({"version": "../../../x"}).encode())
    with pytest.raises(StorageError, match="no version"):
        current_version(storage, "a/b")
    with pytest.raises(StorageError, match="is no key"):
        find_manifest(storage, "a/b", "../../../x")


def archive(path: Path, name: str, *, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    with tarfile.open(path, "w") as made:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, data = kind, link, b"planted"
        member.size = len(data) if kind == tarfile.REGTYPE else 0
        made.addfile(member, io.BytesIO(data))
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "kind", "link"),
    [
        ("../../planted", tarfile.REGTYPE, ""),
        ("/tmp/isoformer-planted", tarfile.REGTYPE, ""),
        ("link", tarfile.SYMTYPE, "/etc/passwd"),
        ("link", tarfile.SYMTYPE, "../../../etc/passwd"),
        ("link", tarfile.LNKTYPE, "../../etc/passwd"),
        ("device", tarfile.CHRTYPE, ""),
    ],
)
def test_a_trials_checkpoint_unpacks_inside_its_folder(
    name: str, kind: bytes, link: str, tmp_path: Path
) -> None:
    packed = tmp_path / "checkpoint.tar"
    archive(packed, name, kind=kind, link=link)
    folder = tmp_path / "a" / "b"
    with pytest.raises(InputError, match=r"root/x\.tar: not a trial's checkpoint"):
        unpack_checkpoint(packed, folder, "root/x.tar")
    assert not Path("/tmp/isoformer-planted").exists() and not (tmp_path / "planted").exists()


@pytest.mark.parametrize("data", [b"", b"not a tar", b"\x00" * 10240])
def test_a_damaged_checkpoint_of_a_trial_is_an_error_in_a_line(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.tar").write_bytes(data)
    with pytest.raises(InputError, match=r"root/x\.tar: not a trial's checkpoint"):
        unpack_checkpoint(tmp_path / "checkpoint.tar", tmp_path / "out", "root/x.tar")


@pytest.mark.parametrize(
    ("endpoint", "warned"),
    [("http://minio.internal:9000", True), ("http://10.0.0.7:9000", True), ("https://minio.internal", False),
     ("http://127.0.0.1:9000", False), ("http://localhost:9000", False), ("http://[::1]:9000", False)],
)  # fmt: skip
def test_an_endpoint_in_plain_text_is_warned_of_once(
    endpoint: str, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    warn_of_plain_text.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            open_storage("s3://bucket/prefix")
    assert caplog.text.count(f"{endpoint} is not encrypted") == int(warned)


@pytest.mark.parametrize("password", ["", "a-password"])
def test_a_password_sent_in_plain_text_is_warned_of(
    password: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN", raising=False)
    warn_of_plain_text.cache_clear()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with caplog.at_level(logging.WARNING), pytest.raises(Exception, match="nowhere"):
        MlflowSink(TrackingConfig(uri="http://nowhere.invalid:5000")).warm()
    assert ("password and token can be read on the way" in caplog.text) == bool(password)


@pytest.mark.parametrize("key", ["../../x", "a/../../../x", "a\x00b"])
def test_an_embedding_dataset_lies_under_the_root(key: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is no key"):
        EmbeddingDataset.open(open_storage(tmp_path), "rna", key)
