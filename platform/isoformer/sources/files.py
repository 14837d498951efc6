"""Source files as they come: plain, gzip or bgzip; missing, empty, truncated or not what they say.

Every reader of the prepare stage opens its input through here, so that a missing or truncated file is the
same clear InputError everywhere, and so that a source's digest is over its bytes.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
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


@contextmanager
def open_text(path: Path, *, until: bytes = b"") -> Iterator[IO[bytes]]:
    """The decompressed bytes of a text file, checked as they are read: UTF-8 without a NUL; a byte order mark
    is left out. They end before a line that begins with `until`.

    InputError naming the line, from a `read` within the block.
    """
    with open_bytes(path) as file:
        yield checked_text(file, path, until=until)


def checked_text(file: IO[bytes], path: Path, *, until: bytes = b"", first_line: int = 1) -> IO[bytes]:
    """As `open_text`, of the rest of a file that is open already, from `first_line` on."""
    return cast("IO[bytes]", _CheckedText(file, path, until, first_line))


class _CheckedText(io.RawIOBase):
    """What Arrow's CSV reader reads: it would hand on what is no text, or stop without naming a line."""

    def __init__(self, file: IO[bytes], path: Path, until: bytes, first_line: int) -> None:
        self._file, self._path, self._marker = file, path, b"\n" + until if until else b""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._line, self._rest, self._ended = first_line, b"", False
        self._begins = first_line == 1

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        while not self._ended:
            chunk = self._file.read(size)
            self._check(chunk)
            if self._begins:
                chunk, self._begins = chunk.removeprefix(codecs.BOM_UTF8), False
                if self._marker and chunk.startswith(self._marker[1:]):
                    chunk = b""
            self._ended = not chunk
            if text := self._before_marker(chunk):
                return text
        return b""

    def _check(self, chunk: bytes) -> None:
        before = len(self._decoder.getstate()[0])
        try:
            self._decoder.decode(chunk, final=not chunk)
            bad = chunk.find(b"\0")
        except UnicodeDecodeError as error:
            bad = max(0, error.start - before)
        if bad >= 0:
            line = self._line + chunk.count(b"\n", 0, bad)
            raise InputError("is not text", file=self._path, line=line, allowed="UTF-8 without NUL bytes")
        self._line += chunk.count(b"\n")

    def _before_marker(self, chunk: bytes) -> bytes:
        """Two chunks may share the marker: the last letters of one wait for the next."""
        if not self._marker:
            return chunk
        text = self._rest + chunk
        place = text.find(self._marker)
        if place >= 0:
            self._ended, self._rest = True, b""
            return text[: place + 1]
        kept = len(text) if not chunk else max(0, len(text) - len(self._marker) + 1)
        self._rest = text[kept:]
        return text[:kept]


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
