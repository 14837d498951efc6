"""Addresses and keys with tricks in them: each is the place that it spells, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from isoformer.errors import StorageError
from isoformer.storage import open_storage
from isoformer.tracking import TrackingConfig


@pytest.mark.parametrize(
    "uri",
    [
        "s3:/bucket/x",
        "S3://bucket/x",
        "file:/x",
        "FILE:///x",
        "s3://b[ad/x",
        "~nobody-of-this-name/x",
        "a\0b",
        "file://",
        "file://]x/y",
    ],
)
def test_what_looks_like_an_address_is_no_folder(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError):
        open_storage(uri)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "key",
    [
        "",
        ".",
        "..",
        "a/.",
        "./a",
        "a/./b",
        "a//b",
        "a/",
        "/a",
        "a/../b",
        "a\0b",
        "a\nb",
        ".writing-x",
        "a/.writing-x",
    ],
)
def test_a_key_has_one_spelling_and_is_listed(key: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is no key"):
        open_storage(tmp_path / "root").write_bytes(key, b"x")
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5000])
def test_a_store_whose_name_is_too_long_is_not_missing(name: str) -> None:
    assert not TrackingConfig(uri=f"sqlite:///{name}").is_missing
