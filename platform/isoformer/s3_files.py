"""A bucket as a pyarrow file system whose writes are `S3Storage`'s: encrypted as asked, tried again, whole.

pyarrow's own S3 file system cannot ask for encryption. Ray Train keeps its state and its checkpoints through
this one where encryption is asked for; paths begin with the bucket. Picklable, as Ray sends it to workers.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
from pyarrow import fs

from isoformer.storage import S3Storage


def s3_file_system(storage: S3Storage) -> fs.FileSystem:
    """Over the whole bucket of a storage, with its endpoint and its encryption."""
    return fs.PyFileSystem(_Files(S3Storage(storage.bucket, "", storage.endpoint, storage.encryption)))


class _Files(fs.FileSystemHandler):
    """Folders are the beginnings of keys: nothing is made of them and nothing is left."""

    def __init__(self, bucket: S3Storage) -> None:
        self.bucket = bucket

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Files) and other.bucket == self.bucket

    def __hash__(self) -> int:
        return hash(self.bucket)

    def get_type_name(self) -> str:
        return "isoformer-s3"

    def normalize_path(self, path: str) -> str:
        return path.rstrip("/")

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: Any) -> list[fs.FileInfo]:
        folder = self._key(selector.base_dir).rstrip("/") + "/"
        names = [key.removeprefix(folder) for key in self.bucket.list(folder)]
        if not names and not selector.allow_not_found:
            raise FileNotFoundError(selector.base_dir)
        found = {name for name in names if selector.recursive or "/" not in name}
        found |= {
            "/".join(parts[: depth + 1])
            for parts in (name.split("/") for name in names)
            for depth in range(len(parts) - 1 if selector.recursive else min(1, len(parts) - 1))
        }
        return [self._info(f"{selector.base_dir.rstrip('/')}/{name}") for name in sorted(found)]

    def create_dir(self, path: str, recursive: bool) -> None:
        pass

    def delete_dir(self, path: str) -> None:
        self.delete_dir_contents(path, missing_dir_ok=True)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        for key in self.bucket.list(self._key(path).rstrip("/") + "/"):
            self.bucket.delete(key)

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("a whole bucket is never deleted")

    def delete_file(self, path: str) -> None:
        self.bucket.delete(self._key(path))

    def move(self, src: str, dest: str) -> None:
        self.copy_file(src, dest)
        self.delete_file(src)

    def copy_file(self, src: str, dest: str) -> None:
        self.bucket.write_bytes(self._key(dest), self.bucket.read_bytes(self._key(src)))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        if not self.bucket.exists(self._key(path)):
            raise FileNotFoundError(path)
        return self.bucket.open_input(self._key(path))

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return pa.PythonFile(_Written(self.bucket, self._key(path)), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        raise NotImplementedError("an object is written whole")

    def _key(self, path: str) -> str:
        """`bucket/key` without the bucket."""
        return path.removeprefix(self.bucket.bucket).lstrip("/")

    def _info(self, path: str) -> fs.FileInfo:
        key = self._key(path)
        if key and self.bucket.exists(key):
            return fs.FileInfo(path, fs.FileType.File, size=self.bucket.size_bytes(key))
        is_folder = bool(self.bucket.list(key.rstrip("/") + "/" if key else ""))
        return fs.FileInfo(path, fs.FileType.Directory if is_folder else fs.FileType.NotFound)


class _Written:
    """A file that is put as one object when it is closed."""

    def __init__(self, bucket: S3Storage, key: str) -> None:
        self._bucket, self._key = bucket, key
        self._folder = tempfile.TemporaryDirectory(prefix="isoformer-put-")
        self._path = Path(self._folder.name, "object")
        self._file = cast(BinaryIO, self._path.open("wb"))

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, data: bytes) -> int:
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        if self.closed:
            return
        self._file.close()
        with self._folder:
            self._bucket.put_file(self._path, self._key)
