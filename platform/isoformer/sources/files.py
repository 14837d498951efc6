"""Source files as they come: plain, gzip or bgzip; missing, empty, truncated or not what they say.

Every reader of the prepare stage opens its input through here, so that a missing or truncated file is the
same clear InputError everywhere, and so that a source's digest is over its bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, cast

from isoformer.errors import InputError

BGZF_END: Final = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block that ends every whole bgzip file (SAM specification, section 4.1.2)."""
_CHUNK_BYTES: Final = 1 << 20


def existing_file(path: str | Path, role: str) -> Path:
    """The path, if it is a readable file that is not empty. InputError otherwise."""
    found = Path(path)
    if not found.exists():
        raise InputError(f"{role} file does not exist", file=path)
    if not found.is_file():
        raise InputError(f"{role} must be a file, not a folder", file=path)
    if found.stat().st_size == 0:
        raise InputError(f"{role} file is empty", file=path)
    return found


def is_gzip(path: Path) -> bool:
    """Whether the file begins as a gzip member does (bgzip too), whatever its name is."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def is_bgzip(path: Path) -> bool:
    """Whether the file is blocked gzip, which can be read at any place."""
    with path.open("rb") as file:
        head = file.read(16)
    return head[:4] == b"\x1f\x8b\x08\x04" and head[12:14] == b"BC"


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file. InputError where compressed data end early or are damaged."""
    compressed = is_gzip(path)
    if compressed and is_bgzip(path):
        _require_bgzip_end(path)
    try:
        with cast("IO[bytes]", gzip.open(path, "rb")) if compressed else path.open("rb") as file:
            yield file
    except EOFError:
        raise InputError("gzip data end early: the file is truncated", file=path) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"gzip data are damaged ({error})", file=path) from None


def chunks(file: IO[bytes]) -> Iterator[bytes]:
    """The rest of a file, about a megabyte at a time."""
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk


def decompressed(path: Path) -> bytes:
    """The whole decompressed content; for files that are read whole anyway (annotations, wide tables)."""
    with open_bytes(path) as file:
        return file.read()


def bytes_digest(path: Path) -> str:
    """blake2b, 16 bytes, in hex, over the file as it lies on disk."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        for chunk in chunks(file):
            digest.update(chunk)
    return digest.hexdigest()


def _require_bgzip_end(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - len(BGZF_END)))
        if file.read() != BGZF_END:
            raise InputError("bgzip end-of-file block is missing: the file is truncated", file=path)
