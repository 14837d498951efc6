"""A storage root: a local folder or an S3 prefix, behind one narrow seam.

`open_storage(uri)` returns an object with keys relative to the root, '/'-separated. The promise that
everything else rests on: **an object appears whole or not at all**. Locally a hidden temporary file is
flushed and renamed; on S3 the object is put in one request that carries a checksum. `if_absent=True`
publishes only where nothing is there yet (a hard link locally, `If-None-Match: *` on S3): of several
writers exactly one wins, and each is told truly whether it won, though an answer was lost on the way.

Credentials come from where boto3 finds them (environment, profile, instance role), never from the URI;
endpoint and encryption as `s3_settings` says. A storage may be pickled to a worker: these and the URI travel,
not credentials. Every failure is a StorageError that names the URI, what failed and how to mend it; its text
holds no secret.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from isoformer.errors import StorageError
from isoformer.s3_requests import RangeReader, body_chunks, retried, s3_client, status_of, whole_body
from isoformer.s3_settings import require_encrypted, s3_encryption, s3_endpoint

if TYPE_CHECKING:
    import pyarrow as pa

TEMPORARY_PREFIX: Final = ".writing-"
_COPY_BYTES: Final = 8 << 20
_S3_PUT_LIMIT_BYTES: Final = 5 << 30
"""S3 takes at most 5 GiB in one request, and one request is what makes a put atomic and checked."""
_WRITE: Final = "isoformer-write"
_DISK_IS_FULL: Final = ("No space left on device", "PytorchStreamWriter failed writing", "unexpected pos ")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")

T = TypeVar("T")


class Storage(Protocol):
    """Objects by key under one root; equal where root and endpoint are.

    Every method raises StorageError where the root or the object fails.
    """

    uri: str

    def __hash__(self) -> int: ...

    def read_bytes(self, key: str) -> bytes:
        """The whole object; StorageError where there is none."""
        ...

    def write_bytes(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        """Publish `data` whole; False (and nothing written) where `if_absent` and the key is taken."""
        ...

    def put_file(self, local_path: Path, key: str, *, if_absent: bool = False) -> bool:
        """Publish a local file whole, in one go; False as for `write_bytes`. The local file stays."""
        ...

    def download(self, key: str, local_path: Path) -> Path:
        """Copy an object to `local_path`, which appears whole or not at all."""
        ...

    def open_input(self, key: str) -> pa.NativeFile:
        """Random access to an object, for `pyarrow.parquet.ParquetFile`."""
        ...

    def list(self, prefix: str = "") -> list[str]:
        """Keys that start with `prefix`, sorted; neither unfinished writes nor folders show."""
        ...

    def exists(self, key: str) -> bool: ...

    def size_bytes(self, key: str) -> int: ...

    def stamp(self, key: str) -> str:
        """Another text when the object is another: its size and time on a disk, its ETag on S3."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        ...

    def delete_folder(self, prefix: str) -> None:
        """Remove every object below `prefix`, which ends with "/", and what marks folders there."""
        ...


def open_storage(uri: str | Path) -> Storage:
    """The storage at `s3://bucket/prefix`, `file:///folder` or a path. Nothing is created or asked yet.

    StorageError for any other address, for one with credentials in it, and for one with `..` in a prefix.
    """
    text = str(uri)
    if _CONTROL.search(text) or not text:
        raise StorageError(
            f"{text!r} is no storage root; allowed: s3://bucket/prefix, file:///folder, a path"
        )
    if text.startswith("s3://"):
        return _open_s3(text)
    if text.startswith("file://"):
        return LocalStorage(_file_path(text))
    if "://" in text or _SCHEME.match(text):
        raise StorageError(
            f"{text}: unknown kind of storage; allowed: s3://bucket/prefix, file:///folder, a path"
        )
    return LocalStorage(Path(text))


def _open_s3(text: str) -> S3Storage:
    try:
        parts = urlsplit(text)
    except ValueError:  # brackets that are no address's
        raise StorageError(f"{text}: is no bucket with a prefix; allowed: s3://bucket/prefix") from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise StorageError(
            "an s3:// root holds a bucket and a prefix only; give credentials in the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or in a profile, not in the address"
        )
    if not parts.netloc:
        raise StorageError(f"{text}: names no bucket; allowed: s3://bucket/prefix")
    prefix = parts.path.strip("/")
    if not _BUCKET.fullmatch(parts.netloc) or {".", "..", ""} & set(prefix.split("/") if prefix else ()):
        raise StorageError(f"{text}: is no bucket with a prefix; allowed: s3://bucket/prefix, without '..'")
    return S3Storage(parts.netloc, prefix, s3_endpoint(), s3_encryption())


def _file_path(text: str) -> Path:
    place = text.removeprefix("file://").removeprefix("localhost")
    path = unquote(place)
    if not place.startswith("/") or {"?", "#"} & set(place) or _CONTROL.search(path):
        raise StorageError(f"{text}: allowed: file:///folder, on this machine; write ? and # as %3F and %23")
    return Path(path)


class LocalStorage:
    """A folder. A relative path is resolved once: a worker with another working folder sees the same."""

    def __init__(self, root: Path) -> None:
        try:
            self.root = Path(os.path.abspath(root.expanduser()))
        except RuntimeError:
            raise StorageError(f"{root}: there is no user of this name; allowed: ~/folder, a path") from None
        self.uri = str(self.root)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalStorage) and other.root == self.root

    def __hash__(self) -> int:
        return hash(self.root)

    def read_bytes(self, key: str) -> bytes:
        with self._explained(key, "cannot be read"):
            return self._path(key).read_bytes()

    def write_bytes(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        with self._explained(key, "cannot be written"):
            return _publish(self._target(key), lambda out: _write_all(out, data), if_absent)

    def put_file(self, local_path: Path, key: str, *, if_absent: bool = False) -> bool:
        with self._explained(key, "cannot be written"):
            return _publish(self._target(key), lambda out: _copy(local_path, out), if_absent)

    def download(self, key: str, local_path: Path) -> Path:
        with self._explained(key, "cannot be read"):
            source = self._path(key)
            source.stat()
        with explain_local(local_path):
            _publish(local_path, lambda out: _copy(source, out), False)
        return local_path

    def open_input(self, key: str) -> pa.NativeFile:
        import pyarrow as pa

        with self._explained(key, "cannot be read"):
            return pa.memory_map(str(self._path(key)), "r")

    def list(self, prefix: str = "") -> list[str]:
        _checked_prefix(prefix)
        start = self.root / prefix.rpartition("/")[0]
        with self._explained(prefix, "cannot be listed"):
            found = [
                Path(folder, name).relative_to(self.root).as_posix()
                for folder, _, names in os.walk(start, onerror=_raise_unless_missing)
                for name in names
                if not name.startswith(TEMPORARY_PREFIX)
            ]
        return sorted(key for key in found if key.startswith(prefix))

    def exists(self, key: str) -> bool:
        with self._explained(key, "cannot be read"):
            return self._path(key).is_file()

    def size_bytes(self, key: str) -> int:
        with self._explained(key, "cannot be read"):
            return self._path(key).stat().st_size

    def stamp(self, key: str) -> str:
        with self._explained(key, "cannot be read"):
            status = self._path(key).stat()
        return f"{status.st_size}-{status.st_mtime_ns}"

    def delete(self, key: str) -> None:
        with self._explained(key, "cannot be deleted"):
            self._path(key).unlink(missing_ok=True)

    def delete_folder(self, prefix: str) -> None:
        for key in self.list(prefix):
            self.delete(key)
        shutil.rmtree(self._path(prefix.removesuffix("/")), ignore_errors=True)

    def abandoned(self) -> Sequence[Path]:
        """Temporary files that killed writers left behind; readers never see them."""
        return sorted(self.root.rglob(f"{TEMPORARY_PREFIX}*"))

    def _path(self, key: str) -> Path:
        return self.root / _checked_key(key)

    def _target(self, key: str) -> Path:
        """Of what is written: no name that a listing takes for an unfinished write."""
        if key.rpartition("/")[2].startswith(TEMPORARY_PREFIX):
            raise StorageError(
                f"{key!r} is no key; names that begin with {TEMPORARY_PREFIX} are kept for writing"
            )
        return self._path(key)

    def _explained(self, key: str, what: str) -> contextlib.AbstractContextManager[None]:
        return explain_local(self.root / key, what)


class S3Storage:
    """A prefix of a bucket, on AWS or any server that speaks S3 with conditional puts.

    Every request is tried again as `s3_requests.retried` says. An upload is one request and a download is
    checked for length and checksum, so an attempt that broke off leaves nothing.
    """

    def __init__(
        self, bucket: str, prefix: str, endpoint: str | None, encryption: Mapping[str, str] | None = None
    ) -> None:
        self.bucket, self.prefix, self.endpoint = bucket, prefix, endpoint
        self.encryption = dict(encryption or {})
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._client: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, S3Storage) and (other.uri, other.endpoint) == (self.uri, self.endpoint)

    def __hash__(self) -> int:
        return hash((self.uri, self.endpoint))

    def read_bytes(self, key: str) -> bytes:
        return self._retried(key, "cannot be read", lambda: whole_body(self._get(key)))

    def write_bytes(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        return self._put(key, io.BytesIO(data), if_absent)

    def put_file(self, local_path: Path, key: str, *, if_absent: bool = False) -> bool:
        with explain_local(local_path, "cannot be read"):
            size = local_path.stat().st_size
        if size > _S3_PUT_LIMIT_BYTES:
            raise StorageError(
                f"{self.uri}/{key}: {size} bytes is over S3's 5 GiB for one put; use more shards"
            )
        with local_path.open("rb") as body:
            return self._put(key, body, if_absent)

    def download(self, key: str, local_path: Path) -> Path:
        def copy() -> None:
            chunks = body_chunks(self._get(key), _COPY_BYTES)
            with explain_local(local_path):
                _publish(local_path, lambda out: _write_chunks(out, chunks), False)

        self._retried(key, "cannot be read", copy)
        return local_path

    def open_input(self, key: str) -> pa.NativeFile:
        """Each read is one request for its range, of the object as it was when opened."""
        import pyarrow as pa

        head = self._head(key)

        def read_range(start: int, end: int) -> bytes:
            wanted = {"Range": f"bytes={start}-{end - 1}", "IfMatch": head["ETag"]}
            return self._retried(key, "cannot be read", lambda: whole_body(self._get(key, **wanted)))

        return pa.PythonFile(RangeReader(int(head["ContentLength"]), read_range), mode="r")

    def list(self, prefix: str = "") -> list[str]:
        return sorted(key for key in self._listed(prefix) if key and not key.endswith("/"))

    def exists(self, key: str) -> bool:
        from botocore.exceptions import ClientError

        def is_there() -> bool:
            try:
                self._s3().head_object(Bucket=self.bucket, Key=self._key(key))
            except ClientError as error:
                if status_of(error) != 404:
                    raise
                # a bucket that is missing must not look like an empty one
                self._s3().head_bucket(Bucket=self.bucket)
                return False
            return True

        return self._retried(key, "cannot be read", is_there)

    def size_bytes(self, key: str) -> int:
        return int(self._head(key)["ContentLength"])

    def stamp(self, key: str) -> str:
        return str(self._head(key)["ETag"])

    def delete(self, key: str) -> None:
        self._delete(_checked_key(key))

    def delete_folder(self, prefix: str) -> None:
        for key in [*self._listed(prefix)]:
            self._delete(key)

    def _delete(self, key: str) -> None:
        def remove() -> None:
            self._s3().delete_object(Bucket=self.bucket, Key=self._under_prefix(key))

        self._retried(key, "cannot be deleted", remove)

    def _listed(self, prefix: str) -> Iterator[str]:
        """Keys, those that end with "/" too, and an empty one: consoles and file systems mark folders so."""
        _checked_prefix(prefix)
        cut = len(self.prefix) + 1 if self.prefix else 0
        for page in self._pages(prefix):
            yield from (item["Key"][cut:] for item in page.get("Contents", []))

    def _put(self, key: str, body: BinaryIO, if_absent: bool) -> bool:
        """A conditional put carries a name of its own: the key may be taken by an earlier attempt of ours.

        That is so where the put was done and its answer was lost.
        """
        from botocore.exceptions import ClientError

        mine = uuid.uuid4().hex
        options: dict[str, Any] = {"ChecksumAlgorithm": "CRC32", **self.encryption}
        if if_absent:
            options |= {"IfNoneMatch": "*", "Metadata": {_WRITE: mine}}

        def put() -> bool:
            body.seek(0)
            try:
                answer = self._s3().put_object(Bucket=self.bucket, Key=self._key(key), Body=body, **options)
                require_encrypted(answer, self.encryption, f"{self.uri}/{key}")
            except ClientError as error:
                if if_absent and status_of(error) == 412:
                    return self._written_by(key) == mine
                raise
            return True

        return self._retried(key, "cannot be written", put)

    def _written_by(self, key: str) -> str | None:
        """Which conditional put made an object; None where it was put otherwise, or is gone again."""
        from botocore.exceptions import ClientError

        try:
            head = self._s3().head_object(Bucket=self.bucket, Key=self._key(key))
        except ClientError as error:
            if status_of(error) != 404:
                raise
            return None
        return head.get("Metadata", {}).get(_WRITE)

    def _get(self, key: str, **condition: str) -> Any:
        return self._s3().get_object(Bucket=self.bucket, Key=self._key(key), **condition)

    def _head(self, key: str) -> Any:
        return self._retried(
            key, "cannot be read", lambda: self._s3().head_object(Bucket=self.bucket, Key=self._key(key))
        )

    def _pages(self, prefix: str) -> Iterator[Any]:
        start = self._under_prefix(prefix)
        following: dict[str, str] = {}

        def page() -> Any:
            return self._s3().list_objects_v2(Bucket=self.bucket, Prefix=start, **following)

        while True:
            answer = self._retried(prefix, "cannot be listed", page)
            yield answer
            if not answer.get("IsTruncated"):
                return
            following["ContinuationToken"] = answer["NextContinuationToken"]

    def _key(self, key: str) -> str:
        return self._under_prefix(_checked_key(key))

    def _under_prefix(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _s3(self) -> Any:
        if self._client is None:
            self._client = s3_client(self.endpoint)
        return self._client

    def _retried(self, key: str, what: str, call: Callable[[], T]) -> T:
        where = f"{self.uri}/{key}".rstrip("/")
        return retried(call, f"{where}: {what}", self.bucket, self.endpoint)


def _checked_key(key: str) -> str:
    parts = key.split("/")
    if {"", ".", ".."} & set(parts) or _CONTROL.search(key):
        raise StorageError(f"{key!r} is no key; allowed: a path relative to the root, without '..'")
    return key


def _checked_prefix(prefix: str) -> None:
    if prefix:
        _checked_key(prefix.removesuffix("/"))


def _publish(target: Path, fill: Callable[[BinaryIO], None], if_absent: bool) -> bool:
    """Write a hidden file beside `target`, flush it to disk, then give it its name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if if_absent and target.exists():
        return False
    temporary = target.parent / f"{TEMPORARY_PREFIX}{target.name}-{uuid.uuid4().hex[:12]}"
    try:
        with temporary.open("xb") as out:
            fill(out)
            out.flush()
            os.fsync(out.fileno())
        return _name(temporary, target, if_absent)
    finally:
        temporary.unlink(missing_ok=True)


def _name(temporary: Path, target: Path, if_absent: bool) -> bool:
    if if_absent:
        try:
            os.link(temporary, target)
        except FileExistsError:
            return temporary.stat().st_nlink > 1  # over NFS the answer to a link of our own may be lost
    else:
        os.replace(temporary, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return True


def _write_all(out: BinaryIO, data: bytes) -> None:
    out.write(data)


def _write_chunks(out: BinaryIO, chunks: Iterator[bytes]) -> None:
    for chunk in chunks:
        out.write(chunk)


def _copy(source: Path, out: BinaryIO) -> None:
    with source.open("rb") as file:
        _write_chunks(out, iter(lambda: file.read(_COPY_BYTES), b""))


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


@contextmanager
def explain_local(path: Path, what: str = "cannot be written") -> Iterator[None]:
    """Any OSError within the block as a StorageError that names `path` and how to mend it."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: {what}: {_local_reason(error)}") from None


def full_disk(error: BaseException) -> StorageError | None:
    """The error as ours where it, or one that it came from, says that a disk is full; libraries that write in
    other languages say so in their own words.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        said = isinstance(current, OSError) and current.errno in (errno.ENOSPC, errno.EDQUOT)
        if said or any(words in str(current) for words in _DISK_IS_FULL):
            place = getattr(current, "filename", None) or tempfile.gettempdir()
            full = current if said else OSError(errno.ENOSPC, "")
            return StorageError(f"{place}: cannot be written: {_local_reason(full)}")  # type: ignore[arg-type]
        wrapped = getattr(current, "cause", None)
        current = wrapped if isinstance(wrapped, BaseException) else current.__cause__ or current.__context__
    return None


def _local_reason(error: OSError) -> str:
    reasons = {
        errno.ENOENT: "there is no such file",
        errno.ENOSPC: "the disk is full; free some space or choose another root, then run again",
        errno.EDQUOT: "your disk quota is used up; free some space or choose another root, then run again",
        errno.EFBIG: "the file is over the size limit here; use more shards or raise the limit",
        errno.EACCES: "permission denied; make the folder readable and writable for this user",
        errno.EPERM: "not permitted; choose a folder that this user may write and that allows hard links",
        errno.EROFS: "the file system is read-only; choose another root",
        errno.EEXIST: "a file is in the way of a folder; choose another root",
        errno.ENOTDIR: "a part of this path is a file, not a folder; choose another root",
        errno.EISDIR: "this is a folder, not a file",
    }
    return reasons.get(error.errno or 0, error.strerror or type(error).__name__)
