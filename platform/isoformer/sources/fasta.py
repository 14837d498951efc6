"""FASTA text, checked as it goes by: every letter is a nucleotide's.

In: the chunks of a file. Out: the number of headers; the chunks go to a digest and, where asked for, to a
copy. Called by `reference.py`: the indexer passes over what is no letter, and would give another sequence.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import IO, Any, Final

from isoformer.errors import InputError
from isoformer.sources.files import chunks

ALLOWED: Final = "A C G T U N and IUPAC ambiguity codes"
_LETTERS: Final = b"ACGTUNRYSWKMBDHVacgtunryswkmbdhv\n"
_HEADERS: Final = re.compile(rb"^>.*$", re.MULTILINE)


def copy_fasta(file: IO[bytes], source: Path, digest: Any, out: Any | None) -> int:
    """The number of headers. InputError where the text is not FASTA, or holds a letter that is none."""
    checked = FastaLines(source)
    last = b""
    for chunk in chunks(file):
        checked.add(chunk)
        last = chunk
        digest.update(chunk)
        if out is not None:
            out.write(chunk)
    if not last.endswith(b"\n"):
        digest.update(b"\n")
        if out is not None:
            out.write(b"\n")
    return checked.headers


class FastaLines:
    """Lines in pieces of any size, as a file is read."""

    def __init__(self, source: Path) -> None:
        self.headers = 0
        self._source, self._line = source, 1
        self._at_start, self._in_header = True, False

    def add(self, chunk: bytes) -> None:
        """The next piece. InputError names the line of the first letter that is none."""
        if self._line == 1 and self._at_start and not chunk.startswith(b">"):
            first = chunk[:20].decode("ascii", "replace")
            raise InputError(
                "is not FASTA", file=self._source, line=1, value=first, allowed="a line starting with '>'"
            )
        rest = chunk
        if self._in_header:
            rest = chunk[len(chunk.split(b"\n", 1)[0]) :]
        elif not self._at_start:
            rest = b"A" + chunk  # a '>' within a line begins no header
        bare, found = _HEADERS.subn(b"", rest) if b">" in rest else (rest, 0)
        strange = bare.translate(None, _LETTERS)
        line_ends = bare.count(b"\r\n") + bare.endswith(b"\r")
        if b"\0" in chunk or strange != b"\r" * line_ends:
            self._refuse(rest)
        self.headers += found
        self._line += chunk.count(b"\n")
        line = chunk[chunk.rfind(b"\n") + 1 :]
        self._in_header = line.startswith(b">") if b"\n" in chunk or self._at_start else self._in_header
        self._at_start = not line

    def _refuse(self, text: bytes) -> None:
        for number, line in enumerate(text.split(b"\n"), self._line):
            text = line.removesuffix(b"\r").translate(None, _LETTERS)
            bad = b"\0" if b"\0" in line else b"" if line.startswith(b">") else text
            if bad:
                letter = bad[:1].decode("latin-1")
                raise InputError(
                    "letter of a sequence is not one",
                    file=self._source,
                    line=number,
                    value=letter,
                    allowed=ALLOWED,
                )
