"""Configuration as frozen data, checked once, at the door.

`load_yaml` reads a file, `with_overrides` applies `--set a.b=value` and fills in `${NAME}` from the
environment (so that a secret stands in neither), a `FrozenConfig` subclass checks the whole. Each
configuration class sits beside the code that it configures; `settings.py` puts them together.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, PlainSerializer, ValidationError

from isoformer.documents import DocumentError, parse_yaml
from isoformer.errors import ConfigError, shortened
from isoformer.masking import without_password as without_password

_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")

Address = Annotated[str, PlainSerializer(without_password, return_type=str, when_used="json")]
"""A URL that may hold a password, which is saved, shown and logged nowhere."""


class FrozenConfig(BaseModel):
    """Base of all configuration: immutable, no unknown keys, defaults that are the tiny CPU run."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, _masked(value)

    def edited(self, **changes: Any) -> Self:
        """A checked copy with some fields replaced."""
        return build(type(self), {**self.model_dump(), **changes})


C = TypeVar("C", bound=BaseModel)


def build(config_class: type[C], data: Mapping[str, Any], *, origin: str = "configuration") -> C:
    """Check `data`; ConfigError names every offending key, its value and what is allowed."""
    try:
        return config_class.model_validate(dict(data))
    except ValidationError as error:
        lines = [f"{origin}: {_explained(item, config_class)}" for item in error.errors()]
        raise ConfigError("\n".join(lines)) from None


class UnsetVariableError(ConfigError):
    """A `${NAME}` whose variable is not set here."""


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping. ConfigError where the file is missing, unreadable or not a mapping."""
    try:
        data = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except DocumentError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a mapping of keys to values, got {type(data).__name__}")
    return data


def with_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of `data` with `section.key=value` overrides applied, whose values are read as YAML; then every
    `${NAME}` in a text is replaced by that environment variable. ConfigError for an override with a secret.
    """
    result = _copied(data)
    for override in overrides:
        key, equals, text = override.partition("=")
        if without_password(text) != text:
            raise ConfigError(
                f"--set {override}: a command line is for all to see: write ${{NAME}} in place of the secret "
                "and set that variable; a tracking server's credentials are MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD"
            )
        if not equals or not key:
            raise ConfigError(f"--set {override}: must be section.key=value")
        target = result
        *parents, leaf = key.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {override}: {parent!r} is a value, not a section")
        try:
            target[leaf] = parse_yaml(text)
        except DocumentError as error:
            raise ConfigError(f"--set {override}: the value {error}") from None
    return {key: _filled_in(value) for key, value in result.items()}


def _filled_in(data: Any) -> Any:
    """ConfigError where a variable is not set."""
    if isinstance(data, Mapping):
        return {key: _filled_in(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_filled_in(value) for value in data]
    return _VARIABLE.sub(_variable, data) if isinstance(data, str) else data


def _variable(match: re.Match[str]) -> str:
    try:
        return os.environ[match[1]]
    except KeyError:
        raise UnsetVariableError(f"{match[0]}: the environment variable {match[1]} is not set") from None


def to_yaml(config: BaseModel) -> str:
    """The resolved configuration as YAML, to be saved with every artefact."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _masked(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_masked(item) for item in value)
    return without_password(value) if isinstance(value, str) else value


def _copied(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in data.items()}


def _explained(item: Any, config_class: type[BaseModel]) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = _keys_at(config_class, item["loc"][:-1])
        close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"unknown key {shortened(path)}{hint} allowed: {', '.join(known)}"
    return f"{path}: {item['msg']}, got {shortened(item.get('input'), 200)}"


def _keys_at(config_class: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    current: Any = config_class
    for part in location:
        fields = getattr(current, "model_fields", {})
        current = fields[part].annotation if part in fields else None
    return list(getattr(current, "model_fields", {}))
