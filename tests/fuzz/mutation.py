"""One change of an input, at one place: of JSON a value, of a table a cell, of anything a byte.

In: bytes, a door's words and a random generator. Out: other bytes. The campaign mixes it with the
coverage-guided fuzzer's own changes, which seldom leave a document whole; the tests draw from it alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63,
    -(2**63),
    10**30,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "x",
    "0",
    "1.5",
    "../x",
    "/etc/passwd",
    "a\0b",
    "\x1b[31mred",
    "a\nb",
    "ß",
    "\ud800",
    "\u202e",
    "x" * 500,
    [],
    {},
    [[]],
    {"": 0},
    ["x"],
    [1, "x", None],
)


def mutated(data: bytes, words: Sequence[bytes], chance: random.Random) -> bytes:
    """The input with one to three changes."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        change = chance.choice((_document, _document, _cells, _lines, _bytes, _bytes))
        data = change(data, words, chance)
    return data


def _document(data: bytes, words: Sequence[bytes], chance: random.Random) -> bytes:
    """JSON with one value replaced, left out, doubled or renamed."""
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError):
        return _bytes(data, words, chance)
    places = list(_places(whole))
    if not places:
        return json.dumps(chance.choice(VALUES)).encode()
    parent, name = chance.choice(places)
    action = chance.randrange(5)
    if action == 0:
        del parent[name]
    elif action == 1 and isinstance(parent, dict):
        parent[chance.choice(("x", "", f"{name} ", *map(_text, words[:8])))] = parent[name]
    elif action == 2 and isinstance(parent, list):
        parent.append(parent[name])
    else:
        parent[name] = chance.choice((*VALUES, *map(_text, words)))
    return json.dumps(whole).encode()


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(collection, key) of every value in a document; of a large one some."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting and len(found) < 2000:
        here = waiting.pop()
        keys = list(here) if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else ()
        found += [(here, key) for key in keys]
        waiting += [here[key] for key in keys]
    return found


def _cells(data: bytes, words: Sequence[bytes], chance: random.Random) -> bytes:
    """A table with one cell replaced, left out or doubled."""
    lines = data.split(b"\n")
    place = chance.randrange(len(lines))
    delimiter = b"\t" if b"\t" in lines[place] else b","
    cells = lines[place].split(delimiter)
    cell = chance.randrange(len(cells))
    action = chance.randrange(4)
    if action == 0:
        del cells[cell]
    elif action == 1:
        cells.insert(cell, chance.choice(cells))
    elif words:
        cells[cell] = chance.choice((b"", cells[cell] + chance.choice(words), *words))
    lines[place] = delimiter.join(cells)
    return b"\n".join(lines)


def _lines(data: bytes, words: Sequence[bytes], chance: random.Random) -> bytes:
    """A line left out, doubled, moved or blank."""
    lines = data.split(b"\n")
    place, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    action = chance.randrange(4)
    if action == 0:
        del lines[place]
    elif action == 1:
        lines.insert(other, lines[place])
    elif action == 2:
        lines.insert(other, lines.pop(place))
    else:
        lines.insert(place, chance.choice((b"", b" ", b"\t", b"#", b"#x")))
    return b"\n".join(lines)


def _bytes(data: bytes, words: Sequence[bytes], chance: random.Random) -> bytes:
    """Bytes replaced, left out, put in or cut off."""
    place = chance.randrange(len(data) + 1)
    action = chance.randrange(5)
    if action == 0:
        return data[:place] + bytes([chance.randrange(256)]) + data[place + 1 :]
    if action == 1:
        return data[:place] + data[place + chance.choice((1, 1, 2, 8, 64)) :]
    if action == 2:
        return data[:place]
    if action == 3 and words:
        word = chance.choice(words)
        return data[:place] + word + data[place + chance.choice((0, len(word))) :]
    start = chance.randrange(len(data) + 1)
    return data[:place] + data[start : start + chance.choice((1, 8, 40))] + data[place:]


def _text(word: bytes) -> str:
    return word.decode("utf-8", "replace")
