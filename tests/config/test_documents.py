"""YAML and JSON that somebody wrote: plain data of a reasonable size, or one line that says what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from isoformer.config import build, load_yaml, with_overrides
from isoformer.documents import DocumentError, parse_json, parse_mapping, parse_yaml, stored_mapping
from isoformer.errors import LONGEST, ConfigError, EncoderError, InputError, StorageError
from isoformer.settings import Settings
from isoformer.storage import open_storage


def laughs(levels: int = 8) -> str:
    """Nine aliases of nine aliases of …: 9^levels values in a few hundred letters."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (laughs(), "more than 200,000 values once its aliases"),
        ("a: &a [*a]", "an alias stands for what it is part of"),
        ("[" * 5000, "nested more than 50 deep"),
        ("- " * 5000, "nested more than 50 deep"),
        ("a: 1\nb: 2\na: 3", "line 3: key 'a' is there twice"),
        ("a: 2024-13-45", "a value is not of its kind"),
        ("a: !!int x", "a value is not of its kind"),
        ("a: " + "9" * 6000, "a value is not of its kind"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: [1", "line 1, column 6: expected ',' or ']'"),
        ("a: \0", "special characters are not allowed"),
    ],
    ids=["laughs", "endless", "deep", "deep-block", "twice", "date", "tag", "long", "python", "open", "nul"],
)
def test_yaml_that_is_no_plain_data_is_refused_in_one_line(text: str, problem: str) -> None:
    with pytest.raises(DocumentError) as refused:
        parse_yaml(text)
    assert problem in str(refused.value) and "\n" not in str(refused.value)


def test_aliases_and_merges_of_a_reasonable_size_are_read() -> None:
    text = "base: &base {x: 1, y: 2}\nother: {<<: *base, y: 3}\nlist: [*base, *base]"
    found = parse_yaml(text)
    assert found["other"] == {"x": 1, "y": 3} and found["list"] == [{"x": 1, "y": 2}] * 2


@pytest.mark.parametrize("text", [b"[" * 100_000, b"{", b"", b"\xff\xfe\x00", b'"\xff"'])
def test_json_that_is_none_is_refused(text: bytes) -> None:
    with pytest.raises(DocumentError, match="is not valid JSON"):
        parse_json(text)


def test_a_mapping_is_asked_for() -> None:
    with pytest.raises(DocumentError, match="must be a mapping, got list"):
        parse_mapping(b"[]")


@pytest.mark.parametrize(
    ("data", "problem"),
    [(b"[]", "must be a mapping"), (b"{}", "version must be a str, got None"), (b'{"version": 3}', "got 3")],
)
def test_a_stored_mapping_names_object_and_field(data: bytes, problem: str, tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.write_bytes("x/current.json", data)
    with pytest.raises(StorageError, match=rf"x/current\.json: .*{problem}"):
        stored_mapping(storage, "x/current.json", {"version": str})


@pytest.mark.parametrize("text", [laughs(), "root: &a [*a]", "root: a\nroot: b", "run: 2024-13-45"])
def test_a_configuration_names_its_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml: "):
        load_yaml(path)


@pytest.mark.parametrize("value", ["&a [*a]", "[" * 4000, "2024-99-99"])
def test_an_override_is_named(value: str) -> None:
    with pytest.raises(ConfigError, match="--set root="):
        with_overrides({}, [f"root={value}"])


def test_a_value_without_end_is_cut_and_a_password_in_it_is_not_bared() -> None:
    with pytest.raises(ConfigError) as refused:
        build(Settings, {"train": "postgresql://user:" + "s3cret" * 100 + "@host/" + "x" * 300_000})
    assert len(str(refused.value)) < LONGEST and "s3cret" not in str(refused.value)


@pytest.mark.parametrize("kind", [InputError, StorageError, EncoderError])
def test_an_error_is_one_line_of_printable_letters(kind: Any) -> None:
    text = str(kind("first\nsecond\x1b[31m\u2028third \ud800\u202e" + "x" * 10_000))
    assert text.isprintable() and len(text) <= LONGEST
    assert text.startswith(r"first; second\x1b[31m\u2028third \ud800\u202e")


def test_a_configuration_error_has_a_line_a_key_and_no_more_than_can_be_read() -> None:
    with pytest.raises(ConfigError) as refused:
        build(Settings, {f"key{n}\x1b": n for n in range(40)})
    lines = str(refused.value).split("\n")
    assert len(lines) == 11 and lines[-1] == "… and 30 more" and all(line.isprintable() for line in lines)
