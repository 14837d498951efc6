"""What every storage promises, on a local folder and on a real S3 server."""

from __future__ import annotations

import errno
import io
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from isoformer.errors import StorageError
from isoformer.s3_requests import s3_client
from isoformer.storage import LocalStorage, Storage, open_storage
from services import SECRET_KEY, S3Server


class StorageContract:
    """Inherited by each kind of storage, which provides the `storage` fixture."""

    def test_bytes_come_back(self, storage: Storage) -> None:
        assert storage.write_bytes("a/b.json", b"one")
        assert storage.write_bytes("a/b.json", b"two")
        assert storage.read_bytes("a/b.json") == b"two"
        assert storage.size_bytes("a/b.json") == 3

    def test_a_stamp_changes_with_the_object(self, storage: Storage) -> None:
        storage.write_bytes("k", b"one")
        first = storage.stamp("k")
        assert storage.stamp("k") == first
        storage.write_bytes("k", b"two")
        assert storage.stamp("k") != first

    def test_absent_objects_are_named(self, storage: Storage) -> None:
        for read in (storage.read_bytes, storage.size_bytes, storage.open_input, storage.stamp):
            with pytest.raises(StorageError, match=r"nowhere/x\.bin"):
                read("nowhere/x.bin")
        with pytest.raises(StorageError, match=r"nowhere/x\.bin"):
            storage.download("nowhere/x.bin", Path("unused"))
        assert not Path("unused").exists()
        assert not storage.exists("nowhere/x.bin")

    def test_if_absent_never_overwrites(self, storage: Storage, tmp_path: Path) -> None:
        local = tmp_path / "other"
        local.write_bytes(b"other")
        assert storage.write_bytes("k", b"first", if_absent=True)
        assert not storage.write_bytes("k", b"second", if_absent=True)
        assert not storage.put_file(local, "k", if_absent=True)
        assert storage.read_bytes("k") == b"first"

    def test_one_of_many_writers_wins(self, storage: Storage) -> None:
        wins: list[bytes] = []
        barrier = threading.Barrier(8)

        def write(data: bytes) -> None:
            barrier.wait()
            if storage.write_bytes("race", data, if_absent=True):
                wins.append(data)

        threads = [threading.Thread(target=write, args=(bytes([n]) * 100_000,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(wins) == 1
        assert storage.read_bytes("race") == wins[0]

    def test_files_travel_both_ways(self, storage: Storage, tmp_path: Path) -> None:
        local = tmp_path / "in.bin"
        local.write_bytes(bytes(range(256)) * 50_000)
        assert storage.put_file(local, "files/in.bin")
        copy = storage.download("files/in.bin", tmp_path / "deep" / "out.bin")
        assert copy.read_bytes() == local.read_bytes()
        assert [path.name for path in copy.parent.iterdir()] == ["out.bin"]

    def test_parquet_reads_by_range(self, storage: Storage) -> None:
        table = pa.table({"x": range(50_000)})
        sink = io.BytesIO()
        pq.write_table(table, sink, row_group_size=10_000)
        storage.write_bytes("t.parquet", sink.getvalue())
        with storage.open_input("t.parquet") as source:
            assert pq.ParquetFile(source).read_row_group(3)["x"][0].as_py() == 30_000

    def test_list_is_sorted_and_by_prefix(self, storage: Storage) -> None:
        for key in ("a-b/1", "a/b/2", "a/c", "b"):
            storage.write_bytes(key, b"")
        assert storage.list() == ["a-b/1", "a/b/2", "a/c", "b"]
        assert storage.list("a/") == ["a/b/2", "a/c"]
        assert storage.list("a") == ["a-b/1", "a/b/2", "a/c"]
        assert storage.list("nothing/") == []

    def test_delete_is_idempotent(self, storage: Storage) -> None:
        storage.write_bytes("gone", b"x")
        storage.delete("gone")
        storage.delete("gone")
        assert not storage.exists("gone")

    def test_a_folder_goes_with_all_that_is_below(self, storage: Storage) -> None:
        for key in ("runs/a/x", "runs/a/b/y", "runs/ab"):
            storage.write_bytes(key, b"")
        storage.delete_folder("runs/a/")
        storage.delete_folder("runs/a/")
        assert storage.list() == ["runs/ab"]

    def test_survives_pickling(self, storage: Storage) -> None:
        storage.write_bytes("k", b"v")
        again = pickle.loads(pickle.dumps(storage))  # noqa: S301
        assert again.uri == storage.uri
        assert again.read_bytes("k") == b"v"

    @pytest.mark.parametrize("key", ["", "/etc/x", "../x", "a/../../x"])
    def test_keys_stay_under_the_root(self, storage: Storage, key: str) -> None:
        with pytest.raises(StorageError, match="no key"):
            storage.write_bytes(key, b"")


class TestLocal(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return open_storage(tmp_path / "root")

    def test_uri_forms_agree(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert (
            open_storage("a b").uri == open_storage(f"file://{tmp_path}/a%20b").uri == str(tmp_path / "a b")
        )

    def test_full_disk_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        storage = open_storage(tmp_path)

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("isoformer.storage.os.fsync", full)
        with pytest.raises(
            StorageError, match=r"x\.bin: cannot be written: the disk is full; free some space"
        ):
            storage.write_bytes("x.bin", b"1" * 1000)
        assert list(tmp_path.iterdir()) == []

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "root").write_text("a file")
        with pytest.raises(StorageError, match="choose another root"):
            open_storage(tmp_path / "root").write_bytes("x", b"")

    def test_unwritable_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refused(*_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Path, "mkdir", refused)  # root may write anywhere, so a mode bit proves nothing
        with pytest.raises(StorageError, match=r"x: cannot be written: permission denied; make the folder"):
            open_storage(tmp_path).write_bytes("x", b"")

    def test_unfinished_writes_are_invisible(self, tmp_path: Path) -> None:
        (tmp_path / ".writing-shard-00000.parquet-abc").write_bytes(b"half")
        storage = open_storage(tmp_path)
        assert storage.list() == []
        assert isinstance(storage, LocalStorage)
        assert len(storage.abandoned()) == 1


class TestS3(StorageContract):
    @pytest.fixture
    def storage(self, s3_root: str) -> Storage:
        return open_storage(s3_root)

    @pytest.fixture
    def one_attempt(
        self, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[pytest.MonkeyPatch]:
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        yield monkeypatch

    def test_what_marks_a_folder_is_no_key_and_goes_with_the_folder(
        self, storage: Storage, s3_root: str, s3_server: S3Server
    ) -> None:
        """A console and pyarrow's file system make such objects; Ray Train keeps its state by the latter."""
        bucket, _, prefix = s3_root.removeprefix("s3://").partition("/")
        client = s3_client(s3_server.endpoint)
        for marker in ("", "runs/a/", "runs/a/ray/"):
            client.put_object(Bucket=bucket, Key=f"{prefix}/{marker}", Body=b"")
        storage.write_bytes("runs/a/x", b"")
        assert storage.list("runs/") == storage.list() == ["runs/a/x"]
        storage.delete_folder("runs/a/")
        left = client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")["Contents"]
        assert [one["Key"] for one in left] == [f"{prefix}/"], "the mark of the root, which stays"

    def test_more_than_one_page(self, storage: Storage) -> None:
        for n in range(1005):
            storage.write_bytes(f"many/{n:04d}", b"")
        assert len(storage.list("many/")) == 1005

    def test_wrong_secret(self, s3_root: str, one_attempt: pytest.MonkeyPatch) -> None:
        one_attempt.setenv("AWS_ACCESS_KEY_ID", "isoformer-test")
        one_attempt.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
        storage = open_storage(s3_root)
        calls = [
            lambda: storage.write_bytes("x", b""), lambda: storage.read_bytes("x"), lambda: storage.list(),
            lambda: storage.exists("x"), lambda: storage.open_input("x"),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(
                StorageError, match=f"{s3_root}.*refused the credentials.*AWS_SECRET"
            ) as caught:
                call()
            assert "not-the-secret" not in str(caught.value)
            assert SECRET_KEY not in str(caught.value)

    def test_no_credentials(self, s3_root: str, one_attempt: pytest.MonkeyPatch, tmp_path: Path) -> None:
        one_attempt.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        with pytest.raises(StorageError, match="no S3 credentials; set AWS_ACCESS_KEY_ID"):
            open_storage(s3_root).read_bytes("x")

    def test_missing_bucket(self, one_attempt: pytest.MonkeyPatch) -> None:
        storage = open_storage("s3://no-such-bucket/p")
        with pytest.raises(
            StorageError, match=r"s3://no-such-bucket/p/x: cannot be written.*'no-such-bucket'"
        ):
            storage.write_bytes("x", b"", if_absent=True)
        with pytest.raises(StorageError, match="no-such-bucket"):
            storage.exists("x")
        with pytest.raises(StorageError, match="no-such-bucket"):
            storage.list()

    def test_unreachable_endpoint(self, one_attempt: pytest.MonkeyPatch) -> None:
        one_attempt.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises(
            StorageError, match=r"http://127\.0\.0\.1:9 cannot be reached; check AWS_ENDPOINT_URL"
        ):
            open_storage("s3://bucket/p").read_bytes("x")

    def test_invalid_endpoint(self, one_attempt: pytest.MonkeyPatch) -> None:
        one_attempt.setenv("AWS_ENDPOINT_URL", "localhost:8333")
        with pytest.raises(StorageError, match="check AWS_ENDPOINT_URL"):
            open_storage("s3://bucket/p").read_bytes("x")


@pytest.mark.parametrize("uri", ["gs://bucket/x", "s3://", "s3://key:secret@bucket/p"])
def test_roots_that_are_not_allowed(uri: str) -> None:
    with pytest.raises(StorageError) as caught:
        open_storage(uri)
    assert "secret@" not in str(caught.value)
