"""JSON and YAML as data, whatever somebody wrote: a fault is one line, and nothing grows in memory.

Files of ours and of users that are JSON or YAML are read through here. Refused are nesting without end, YAML
whose aliases stand for more than `MOST_NODES` values or for themselves, a key that is there twice (one of the
two would be dropped in silence), and tags that make anything but plain data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import yaml

from isoformer.errors import StorageError, shortened

if TYPE_CHECKING:
    from isoformer.storage import Storage

MOST_NODES: Final = 200_000
"""Values of a YAML document with every alias written out; a large search space has some hundreds."""
MOST_LEVELS: Final = 50
"""Of YAML, whose reader takes long over deep ones."""
_BAD_TEXT: Final = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)
"""What PyYAML raises where a text does not go with its tag, as `2024-99-99` with a date's."""


class DocumentError(ValueError):
    """A text that is no document; one line, without the file's name."""


def parse_json(text: str | bytes) -> Any:
    """DocumentError where the text is not JSON, or is nested without end."""
    try:
        return json.loads(text)
    except RecursionError:
        raise DocumentError("is not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise DocumentError(f"is not valid JSON: {error}") from None


def parse_mapping(text: str | bytes) -> dict[str, Any]:
    """JSON that is a mapping. DocumentError for anything else."""
    found = parse_json(text)
    if not isinstance(found, dict):
        raise DocumentError(f"must be a mapping, got {type(found).__name__}")
    return found


def stored_mapping(storage: Storage, key: str, fields: Mapping[str, type] | None = None) -> dict[str, Any]:
    """A JSON mapping under a root. StorageError where it is none, or a field has not its type."""
    where = f"{storage.uri}/{key}"
    try:
        found = parse_mapping(storage.read_bytes(key))
    except DocumentError as error:
        raise StorageError(f"{where}: {error}") from None
    for name, kind in (fields or {}).items():
        if not isinstance(found.get(name), kind):
            raise StorageError(f"{where}: {name} must be a {kind.__name__}, got {shortened(found.get(name))}")
    return found


def parse_yaml(text: str | bytes) -> Any:
    """DocumentError where the text is not YAML, or is more than plain data of a reasonable size."""
    try:
        found = yaml.load(text, Loader=_Loader)
        _count_nodes(found, {})
    except DocumentError:
        raise
    except RecursionError:
        raise DocumentError("is not valid YAML: nested too deeply") from None
    except yaml.YAMLError as error:
        raise DocumentError(f"is not valid YAML: {_told(error)}") from None
    except _BAD_TEXT as error:
        raise DocumentError(f"is not valid YAML: a value is not of its kind ({error})") from None
    return found


class _Loader(yaml.SafeLoader):
    """Plain data alone, and no key twice."""

    def fetch_flow_collection_start(self, *arguments: Any) -> None:
        self._require_shallow(self.flow_level)
        super().fetch_flow_collection_start(*arguments)

    def add_indent(self, column: int) -> bool:
        self._require_shallow(len(self.indents))
        return bool(super().add_indent(column))

    def _require_shallow(self, depth: int) -> None:
        if depth >= MOST_LEVELS:
            raise DocumentError(f"is not valid YAML: nested more than {MOST_LEVELS} deep")

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if isinstance(key, yaml.ScalarNode) and name in seen:
                raise DocumentError(
                    f"line {key.start_mark.line + 1}: key {shortened(key.value)} is there twice"
                )
            seen.add(name)
        return node


def _count_nodes(value: Any, known: dict[int, int | None]) -> int:
    """Values with every alias written out; a collection that aliases share is gone through once."""
    if not isinstance(value, dict | list | set | tuple):
        return 1
    if id(value) in known:
        count = known[id(value)]
        if count is None:
            raise DocumentError("is not valid YAML for this: an alias stands for what it is part of")
        return count
    known[id(value)] = None
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    count = 1 + sum(_count_nodes(part, known) for part in parts)
    if count > MOST_NODES:
        raise DocumentError(f"holds more than {MOST_NODES:,} values once its aliases are written out")
    known[id(value)] = count
    return count


def _told(error: yaml.YAMLError) -> str:
    """What is wrong and where, in one line; PyYAML's own text is a picture of several."""
    mark = getattr(error, "problem_mark", None)
    problem = str(getattr(error, "problem", None) or error).splitlines()[0]
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem
