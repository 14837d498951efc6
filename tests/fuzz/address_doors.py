"""The doors of addresses and keys: storage roots, objects, tracking servers, databases.

An address means the place that it spells; a password in it is shown nowhere; a key stays below its root.
"""

from __future__ import annotations

import re
from pathlib import Path

from fuzz.door import Door, Skip
from isoformer.config import build, to_yaml, without_password
from isoformer.storage import LocalStorage, S3Storage, open_storage
from isoformer.sweep.config import SweepConfig
from isoformer.tracking import TrackingConfig


def root_address(data: bytes, folder: Path) -> None:
    """A storage root: a folder, or a bucket and a prefix, as spelled. Nothing is written."""
    uri = data.decode("utf-8", "replace")
    storage = open_storage(uri)
    if isinstance(storage, S3Storage):
        assert uri.startswith("s3://")
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", storage.bucket), f"bucket {storage.bucket!r}"
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        assert (storage.bucket, storage.prefix) == (bucket, prefix.strip("/")), storage.uri
        assert ".." not in storage.prefix.split("/")
        return
    assert isinstance(storage, LocalStorage) and storage.root.is_absolute()
    is_plain = uri.startswith("file://") or "://" not in uri
    assert is_plain and not uri.startswith("s3:/"), f"{uri!r} is no folder"
    storage.exists("transcripts/manifest.json")
    if uri.startswith("file://"):
        assert uri.startswith(("file:///", "file://localhost/")), f"{uri!r} names a host, which is dropped"


def key(data: bytes, folder: Path) -> None:
    """An object's key: it stays below the root, and is there again after it was written."""
    storage = open_storage(folder / "root")
    text = data.decode("utf-8", "replace")
    storage.write_bytes(text, b"here")
    assert storage.read_bytes(text) == b"here" and storage.exists(text)
    inside = [path for path in folder.rglob("*") if path.is_file()]
    assert len(inside) == 1 and (folder / "root") in inside[0].parents, f"{inside} were written"
    assert storage.list() == [text], f"listed as {storage.list()}"
    storage.delete(text)
    assert not storage.exists(text)


def tracking_address(data: bytes, folder: Path) -> None:
    uri = data.decode("utf-8", "replace")
    found = build(TrackingConfig, {"uri": uri, "folder": str(folder)}, origin="tracking")
    _check_secret(uri, found.shown_uri, repr(found), to_yaml(found))
    assert found.resolved_uri == uri and found.ui_address and isinstance(found.is_missing, bool)


def database_address(data: bytes, folder: Path) -> None:
    uri = data.decode("utf-8", "replace")
    found = build(SweepConfig, {"storage": uri}, origin="sweep")
    _check_secret(uri, repr(found), to_yaml(found))


def _check_secret(uri: str, *shown: str) -> None:
    """A password between `:` and `@`, or in the query, is in nothing that is shown."""
    has_one = re.search(rf"://[^/?#@:\s]*:{SECRET}@|[?&]password={SECRET}(&|$)", uri)
    if uri.count(SECRET) > 1:
        raise Skip
    assert not has_one or not any(SECRET in text for text in shown), f"a password is shown: {shown}"
    assert not has_one or SECRET not in without_password(uri)


SECRET = "pA5sw0rdX"


ADDRESS_WORDS = (
    b"://",
    b"s3://",
    b"file://",
    b"@",
    b":",
    b"#",
    b"?",
    b"/",
    b"//",
    b"..",
    b"%2e%2e/",
    b"%00",
    b"\0",
    b"\n",
    b"\r",
    b"\t",
    b"[",
    b"]",
    b"~",
    b"\\",
    b"password=",
    SECRET.encode(),
    b"localhost",
    b"sqlite:///",
    b"postgresql://",
    b"mysql+pymysql://",
    b"https://",
    b"\xe2\x80\xae",
    b".writing-",
    b" ",
)


S3 = b"s3://bucket/some/prefix"


ROOTS = (
    S3,
    b"folder/data",
    b"file:///tmp/x",
    b"s3://",
    b"s3://u:pA5sw0rdX@b/p",
    b"s3://b?x=1",
    b"s3://b#f",
    b"s3://b[ad/p",
    b"s3://bu\ncket/p",
    b"file://etc/passwd",
    b"s3://bucket/../other",
    b"gs://b/p",
    b"",
    b"~nobody-such/x",
    b"a\0b",
    b"x" * 5000,
    b"S3://bucket/p",
    b"s3:/bucket",
    b"file:/x",
    b"FILE:///x",
    b"s3://b//p",
    b"file:///a%00b",
    b"s3://b/p%2e%2e/x",
    b"s3://bucket:80/p",
    b"\xe2\x80\xaex",
)


DATABASES = (
    b"sqlite:////tmp/x.db",
    b"postgresql://user:pA5sw0rdX@host:5432/db",
    b"mysql://user:pA5sw0rdX@host/db?ssl=1",
    b"postgresql://host/db?password=pA5sw0rdX",
    b"https://user:pA5sw0rdX@host/x",
    b"http://localhost:5000",
    b"https://[host/x",
    b"postgresql://user:pA5sw0rdX@host\n/db",
    b"postgresql://a/b?x=1&password=pA5sw0rdX&y=2",
    b"redis://x",
    b"sqlite:///a\0b",
    b"https://u@h:pA5sw0rdX@host",
    b"sqlite:///" + b"x" * 4000,
)


KEY_SEEDS = (
    b"transcripts/shard-00000.parquet",
    b"a",
    b"../a",
    b"a/../b",
    b"/etc/passwd",
    b"a//b",
    b"./a",
    b"a/.",
    b"a\0b",
    b"x" * 300,
    b"a/",
    b"a\nb",
    b"..",
    b".",
    b"",
    b".writing-x",
    b"a\\..\\b",
    "ß/é".encode(),
    b"a/./b",
)

DOORS = (
    Door("root address", root_address, ROOTS, ADDRESS_WORDS, valid=3),
    Door("storage key", key, KEY_SEEDS, ADDRESS_WORDS, valid=2),
    Door("tracking address", tracking_address, DATABASES, ADDRESS_WORDS, ("tracking",), valid=2),
    Door("database address", database_address, DATABASES, ADDRESS_WORDS, ("sweep",), valid=3),
)
