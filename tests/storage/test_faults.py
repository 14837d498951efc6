"""What S3 storage promises while the server throttles, fails, breaks connections and loses answers."""

from __future__ import annotations

import hashlib
import io
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from faulty_s3 import FAULTS, Fault, FaultyS3, faulty_s3
from isoformer.errors import StorageError
from isoformer.storage import S3Storage, Storage, open_storage
from services import SECRET_KEY, S3Server

SEED = 20261103


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultyS3]:
    with faulty_s3(s3_server.endpoint, SEED) as proxy:
        yield proxy


@pytest.fixture
def storage(proxy: FaultyS3, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """Through the proxy; waits and the read timeout are short, attempts many enough for 30% faults."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "14")
    monkeypatch.setattr("isoformer.s3_requests.BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr("isoformer.s3_requests.BACKOFF_LIMIT_SECONDS", 0.2)
    monkeypatch.setattr("isoformer.s3_requests.READ_TIMEOUT_SECONDS", 0.5)
    proxy.late_seconds = 0.7
    return open_storage(s3_root)


@pytest.fixture
def direct(s3_server: S3Server, storage: Storage) -> Storage:
    """The same root without the proxy."""
    assert isinstance(storage, S3Storage)
    return S3Storage(storage.bucket, storage.prefix, s3_server.endpoint)


def payload(size: int, seed: int) -> bytes:
    """Bytes that begin with their own digest: half of them would show."""
    body = random.Random(seed).randbytes(size)
    return hashlib.sha256(body).digest() + body


def is_whole(data: bytes) -> bool:
    return hashlib.sha256(data[32:]).digest() == data[:32]


def calls(storage: Storage, folder: Path) -> dict[str, Callable[[], object]]:
    """Every operation, on the object `k`."""
    local = folder / "local"
    local.write_bytes(b"v" * 100_000)
    return {
        "write": lambda: storage.write_bytes("k", b"v" * 100_000),
        "write if absent": lambda: storage.write_bytes("new", b"v" * 100_000, if_absent=True),
        "put": lambda: storage.put_file(local, "k"),
        "put if absent": lambda: storage.put_file(local, "newer", if_absent=True),
        "read": lambda: storage.read_bytes("k"),
        "download": lambda: storage.download("k", folder / "copy").read_bytes(),
        "open": lambda: storage.open_input("k").read(),
        "list": lambda: storage.list(),
        "exists": lambda: storage.exists("k"),
        "size": lambda: storage.size_bytes("k"),
        "stamp": lambda: len(storage.stamp("k")) > 8,
        "delete": lambda: storage.delete("k"),
    }


EXPECTED = {
    **dict.fromkeys(("write", "write if absent", "put", "put if absent", "exists", "stamp"), True),
    **dict.fromkeys(("read", "download", "open"), b"v" * 100_000),
    "list": ["k", "new", "newer"], "size": 100_000, "delete": None,
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_every_operation_survives(proxy: FaultyS3, storage: Storage, tmp_path: Path, fault: Fault) -> None:
    storage.write_bytes("k", b"v" * 100_000)
    for name, call in calls(storage, tmp_path).items():
        if fault == "conflict" and "if absent" not in name:
            continue
        before = proxy.injected[fault]
        proxy.plan.append(fault)
        assert call() == EXPECTED[name], name
        assert proxy.injected[fault] == before + 1
    assert storage.exists("k") == (fault == "conflict")


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_pass_is_told_in_time(
    proxy: FaultyS3, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    storage.write_bytes("k", b"v" * 100_000)
    opened = storage.open_input("k")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    proxy.probability, proxy.faults = 1.0, [fault]
    everything = {"read range": lambda: opened.read(10), **calls(storage, tmp_path)}
    only = {"conflict": ("write if absent", "put if absent"), "late answer": ("read", "put if absent")}
    for name in only.get(fault, tuple(everything)):
        proxy.requests, begun = 0, time.monotonic()
        with pytest.raises(
            StorageError, match=rf"^{storage.uri}.*: cannot be .*: tried 3 times in"
        ) as caught:
            everything[name]()
        assert time.monotonic() - begun < 10
        assert 3 <= proxy.requests <= 5, name  # a put that is refused as taken asks whose object is there
        assert SECRET_KEY not in str(caught.value)
    assert not (tmp_path / "copy").exists()


def test_the_error_says_what_the_server_said(
    proxy: FaultyS3, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    proxy.probability, proxy.faults = 1.0, ["slow down"]
    with pytest.raises(StorageError) as caught:
        storage.write_bytes("k", b"")
    assert str(caught.value) == (
        f"{storage.uri}/k: cannot be written: tried 2 times in 0 s: "
        f"the S3 endpoint {proxy.endpoint} answered 503 SlowDown"
    )


def test_time_is_bounded_whatever_the_attempts(
    proxy: FaultyS3, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "100000")
    monkeypatch.setattr("isoformer.s3_requests.DEADLINE_SECONDS", 0.5)
    proxy.probability, proxy.faults = 1.0, ["internal error"]
    begun = time.monotonic()
    with pytest.raises(StorageError, match="answered 500 InternalError"):
        storage.list()
    assert 0.2 < time.monotonic() - begun < 3


@pytest.mark.parametrize("text", ["0", "many", "-1"])
def test_attempts_that_are_not_allowed(storage: Storage, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", text)
    with pytest.raises(StorageError, match=f"AWS_MAX_ATTEMPTS is '{text}'; allowed: a whole number from 1"):
        storage.exists("k")


def test_a_refusal_is_not_tried_again(proxy: FaultyS3, storage: Storage) -> None:
    with pytest.raises(StorageError, match="there is no such object"):
        storage.read_bytes("nowhere")
    assert proxy.requests == 1


def test_an_own_put_whose_answer_was_lost_is_won(proxy: FaultyS3, storage: Storage, tmp_path: Path) -> None:
    local = tmp_path / "file"
    local.write_bytes(b"mine")
    proxy.plan.extend(["lost answer", "slow down", "lost answer", "conflict"])
    assert storage.write_bytes("k", b"mine", if_absent=True)
    proxy.plan.extend(["lost answer"])
    assert storage.put_file(local, "f", if_absent=True)
    assert proxy.injected["lost answer"] == 3


def test_another_ones_put_is_not_taken_for_ours(proxy: FaultyS3, storage: Storage) -> None:
    storage.write_bytes("plain", b"same")
    storage.write_bytes("conditional", b"same", if_absent=True)
    for key in ("plain", "conditional"):
        proxy.plan.extend(["lost answer", "internal error"])
        assert not storage.write_bytes(key, b"same", if_absent=True)


def test_a_damaged_body_is_read_again(proxy: FaultyS3, storage: Storage, tmp_path: Path) -> None:
    data = payload(3_000_000, 1)
    storage.write_bytes("k", data)
    proxy.plan.extend(["damaged answer"])
    assert storage.read_bytes("k") == data
    proxy.plan.extend(["damaged answer", "truncated answer"])
    assert storage.download("k", tmp_path / "k").read_bytes() == data
    assert proxy.injected["damaged answer"] == 2


def test_an_object_that_is_replaced_while_it_is_read(storage: Storage) -> None:
    storage.write_bytes("k", payload(1000, 1))
    with storage.open_input("k") as source:
        source.read(100)
        storage.write_bytes("k", payload(1000, 2))
        with pytest.raises(StorageError, match="/k: cannot be read: another object took its place"):
            source.read(100)


def test_many_operations_among_faults(
    proxy: FaultyS3, storage: Storage, direct: Storage, tmp_path: Path
) -> None:
    """Small objects and a few of some MB, while a reader without faults watches for partial ones."""
    proxy.probability = 0.3
    sizes = {f"{n % 5}/{n:03d}": 4_000_000 if n % 40 == 0 else n * 97 for n in range(100)}
    made = {key: payload(size, seed) for seed, (key, size) in enumerate(sizes.items())}
    done = threading.Event()

    def watch() -> int:
        seen = 0
        while not done.is_set():
            keys = direct.list()
            for key in random.Random(seen).sample(keys, min(5, len(keys))):
                assert is_whole(direct.read_bytes(key)), key
                seen += 1
        return seen

    def round_trip(item: tuple[str, bytes]) -> None:
        key, data = item
        assert storage.write_bytes(key, data)
        assert storage.read_bytes(key) == data
        assert storage.size_bytes(key) == len(data)
        copy = storage.download(key, tmp_path / key)
        assert storage.put_file(copy, f"copies/{key}", if_absent=True)
        assert storage.exists(f"copies/{key}")

    with ThreadPoolExecutor(9) as pool:
        watcher = pool.submit(watch)
        try:
            list(pool.map(round_trip, made.items()))
        finally:
            done.set()
        assert watcher.result() > 10
    assert storage.list() == sorted([*made, *(f"copies/{key}" for key in made)])
    assert storage.list() == direct.list()
    assert all(direct.read_bytes(f"copies/{key}") == data for key, data in made.items())
    assert set(FAULTS) == set(proxy.injected)
    assert sum(proxy.injected.values()) > 0.2 * proxy.requests


def test_one_of_many_writers_wins_and_each_knows(proxy: FaultyS3, storage: Storage, direct: Storage) -> None:
    """In every other round all write the same bytes, so that only who wrote them tells the winner."""
    proxy.probability = 0.3
    proxy.faults = [fault for fault in FAULTS if fault != "late answer"] + ["lost answer", "lost answer"]
    with ThreadPoolExecutor(8) as pool:
        for n in range(12):
            made = [payload(2000, writer * (n % 2)) for writer in range(8)]
            won = list(
                pool.map(lambda data, key=f"race/{n}": storage.write_bytes(key, data, if_absent=True), made)
            )
            assert sum(won) == 1
            assert direct.read_bytes(f"race/{n}") == made[won.index(True)]
    assert proxy.injected["lost answer"] > 5


def test_parquet_among_faults(proxy: FaultyS3, storage: Storage) -> None:
    table = pa.table({name: range(n, 50_000 + n) for n, name in enumerate("abc")})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=10_000, write_page_checksum=True)
    storage.write_bytes("t.parquet", sink.getvalue())
    proxy.probability = 0.3
    with storage.open_input("t.parquet") as source:
        file = pq.ParquetFile(source, page_checksum_verification=True)
        groups = [file.read_row_group(n) for n in range(file.num_row_groups)]
        assert pa.concat_tables(groups).equals(table)
        proxy.probability, proxy.faults = 1.0, ["truncated answer"]
        with pytest.raises(StorageError, match=rf"{storage.uri}/t\.parquet: cannot be read: tried 14 times"):
            file.read_row_group(0)
    assert sum(proxy.injected.values()) > 14


def test_a_clock_that_is_wrong_is_named(
    proxy: FaultyS3, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.plan.append("clock skew")
    with pytest.raises(StorageError, match=r"this machine's clock is wrong, .* set the clock"):
        storage.read_bytes("k")
    storage.write_bytes("k", b"v")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone-else")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    refused = open_storage(storage.uri)
    with pytest.raises(StorageError, match="refused the credentials"):
        refused.exists("k")
    now = time.time
    monkeypatch.setattr("isoformer.s3_requests.time.time", lambda: now() - 3 * 3600)
    with pytest.raises(StorageError, match=r"this machine's clock is wrong by (3:00:0|2:59:5)\d, "):
        refused.exists("k")  # an answer to HEAD names no reason
