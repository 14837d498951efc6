"""Every error a user can cause or meet, in one tree.

    IsoformerError
    ├── InputError            a file, line, id, field or value that is not what was asked for
    ├── ConfigError           a configuration key or value that is not allowed
    ├── StorageError          a storage root that cannot be read or written
    │   └── FingerprintError  an existing dataset that was made from something else
    ├── EncoderError          weights or sequences that an encoder cannot take
    ├── ClusterError          Ray, or a worker, that cannot be had
    └── BudgetError           a run that would take longer than it may

The command line prints these without a traceback and exits with status 2; anything else is a bug. Their texts
hold no password, whatever they were given, and nothing that a terminal would take for more than letters: what
cannot be printed is spelled out, and a text without end is cut. One line each; a ConfigError has one a key.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from isoformer.masking import without_password

LONGEST: Final = 2000
"""Letters of a line; one that lists tissues or encoders has a third of them."""
MOST_LINES: Final = 10
"""Of a ConfigError, which has one for every key."""


class IsoformerError(Exception):
    """Base of all errors that are the input's, the configuration's or the surroundings', not the code's."""

    def __init__(self, *values: object) -> None:
        super().__init__(*(self._shown(value) if isinstance(value, str) else value for value in values))

    @classmethod
    def _shown(cls, text: str) -> str:
        lines = (line.strip() for line in without_password(text).split("\n"))
        return _printable("; ".join(line for line in lines if line))


class ConfigError(IsoformerError):
    """A configuration file or override that is not allowed."""

    @classmethod
    def _shown(cls, text: str) -> str:
        lines = without_password(text).strip("\n").split("\n")
        more = [f"… and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
        return "\n".join([_printable(line) for line in lines[:MOST_LINES]] + more)


class StorageError(IsoformerError):
    """A storage root or object that cannot be read or written."""


class FingerprintError(StorageError):
    """A dataset that exists already, but was made from other inputs."""


class EncoderError(IsoformerError):
    """Weights or a sequence that an encoder cannot take."""


class ClusterError(IsoformerError):
    """A Ray cluster or worker that cannot be reached or does not do its part."""


class BudgetError(IsoformerError):
    """A run that would take longer than it may, or whose time cannot be told."""


class InputError(IsoformerError):
    """Bad input, named to the place: file, line or id, field, value, and what is allowed.

    >>> str(InputError("negative TPM", file="x.tsv", line=3, field="Liver", value="-1", allowed=">= 0"))
    "x.tsv, line 3, field 'Liver': negative TPM: got '-1'; allowed: >= 0"
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | Path | None = None,
        line: int | None = None,
        record: str | None = None,
        field: str | None = None,
        value: object = None,
        allowed: str | Iterable[str] | None = None,
    ) -> None:
        where = [str(file)] if file is not None else []
        where += [f"line {line}"] if line is not None else []
        where += [record] if record is not None else []
        where += [f"field {field!r}"] if field is not None else []
        text = (", ".join(where) + ": " if where else "") + problem
        if value is not None:
            text += f": got {shortened(value)}"
        if allowed is not None:
            text += f"; allowed: {allowed if isinstance(allowed, str) else ', '.join(allowed)}"
        super().__init__(text)


def _printable(text: str) -> str:
    """One line: anything else is spelled as Python spells it; of a long text the beginning and the end."""
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 300]} … {text[-290:]}"


def shortened(value: object, limit: int = 80) -> str:
    """A value as an error shows it; masked before it is cut, since a cut hides where a password ends."""
    text = without_password(repr(value))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
