"""Whole embedding runs on Ray: on S3, killed actor, killed driver, two nodes. Always the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from embeddings.driver import CONFIG
from embeddings.test_plan import do_work
from isoformer.embeddings.admin import verify
from isoformer.embeddings.cluster import require_room
from isoformer.embeddings.config import EmbedConfig, EncoderJob
from isoformer.embeddings.pipeline import EmbedProgress, EmbedReport, embed
from isoformer.embeddings.plan import plan
from isoformer.embeddings.store import EmbeddingDataset
from isoformer.errors import ClusterError, InputError
from isoformer.manifest import read_manifest
from isoformer.sources.reference import reference_key
from isoformer.storage import open_storage
from tiny_dataset import write_dataset

SHARDS = 8
DRIVER = Path(__file__).with_name("driver.py")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every object of a run in one process, without Ray."""
    root = str(tmp_path_factory.mktemp("undisturbed"))
    write_dataset(root, shards=SHARDS, poison_protein=True)
    do_work(plan(CONFIG, root))
    embed(CONFIG, root)
    return embeddings(root)


def embeddings(root: str) -> dict[str, bytes]:
    storage = open_storage(root)
    return {key: storage.read_bytes(key) for key in storage.list("embeddings/")}


def prepared(root: str) -> str:
    write_dataset(root, shards=SHARDS, poison_protein=True)
    return root


@pytest.mark.slow
def test_on_s3_with_two_runs_at_once(ray_local: None, s3_root: str, undisturbed: dict[str, bytes]) -> None:
    prepared(s3_root)
    reports: list[EmbedReport] = []
    seen: list[EmbedProgress] = []
    rival = threading.Thread(target=lambda: reports.append(embed(CONFIG, s3_root)))
    rival.start()
    report = embed(CONFIG, s3_root, progress=seen.append)
    rival.join()
    assert embeddings(s3_root) == undisturbed
    assert len(reports) == 1
    assert (seen[-1].shards_done, seen[-1].tokens_done) == (seen[-1].shards, seen[-1].tokens)
    assert report.quarantined == {"no_valid_letter": 1}
    assert (
        report.tokens + reports[0].tokens >= 0.99 * report.predicted_tokens
    )  # what one made, the other used
    assert report.keys.keys() == {"dna", "rna", "protein"}
    json.dumps(report.to_json())
    dataset = EmbeddingDataset.open(open_storage(s3_root), "rna", report.keys["rna"][1])
    assert sum(len(dataset.read_shard(shard)) for shard in range(len(dataset))) == SHARDS * 8
    assert plan(CONFIG, s3_root).work == []
    assert plan(CONFIG, s3_root).encoders[0].tokens_per_second is not None


@pytest.mark.slow
def test_prometheus_is_told(ray_local: None, tmp_path: Path) -> None:
    """Scraped from the node as Prometheus does, for an encoder that no other run of this Ray has used."""
    root = prepared(str(tmp_path))
    report = embed(EmbedConfig(encoders=(EncoderJob(name="esm2-tiny"),), threads_per_actor=1), root)
    expected = {
        "tokens_total": report.tokens,
        "sequences_total": report.sequences,
        "bytes_written_total": report.bytes_written,
        "shards_total": report.shards_written,
        'quarantined_total{reason="no_valid_letter"}': 1,
    }
    deadline = time.monotonic() + 40
    found: dict[str, float] = {}
    while found != expected and time.monotonic() < deadline:
        time.sleep(1)
        found = {name: value for name, value in scraped("esm2-tiny").items() if name in expected}
    assert found == expected
    assert 0 < scraped("esm2-tiny")["device_busy_fraction"] <= 1


def scraped(encoder: str) -> Counter[str]:
    """Sums over workers of what this node exports of an encoder."""
    import ray  # not before the session has set its environment

    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text = urllib.request.urlopen(address, timeout=10).read().decode()
    totals: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix("ray_isoformer_")
            reason = sample.labels.get("reason")
            if name != sample.name and sample.labels.get("encoder") == encoder:
                totals[f'{name}{{reason="{reason}"}}' if reason else name] += sample.value
    return totals


@pytest.mark.slow
def test_an_actor_that_is_killed(ray_local: None, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    root = prepared(str(tmp_path))
    killed: list[int] = []

    def kill_once(_: EmbedProgress) -> None:
        if not killed:
            killed.extend(process.pid for process in encode_actors())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    embed(CONFIG, root, progress=kill_once)
    assert killed
    assert embeddings(root) == undisturbed


def encode_actors() -> Iterator[psutil.Process]:
    """Ours only: descendants of this process."""
    for process in psutil.Process().children(recursive=True):
        try:
            if "EncodeWorker" in " ".join(process.cmdline()):
                yield process
        except psutil.NoSuchProcess:
            continue


@pytest.mark.slow
def test_a_pool_that_takes_what_workers_it_gets(
    ray_local: None, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    """Five more are asked for than the cluster has room for."""
    root = prepared(str(tmp_path))
    seen: list[EmbedProgress] = []
    embed(CONFIG.edited(actors=9, least_actors=1), root, progress=seen.append)
    assert max(progress.workers for progress in seen) <= 4
    assert embeddings(root) == undisturbed


@pytest.mark.slow
def test_a_driver_that_is_killed(ray_local: None, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    root = prepared(str(tmp_path))
    command = [sys.executable, str(DRIVER), root]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(embeddings(root)) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    psutil.wait_procs(family, timeout=30)  # Ray's own processes follow their driver
    left = embeddings(root)
    assert 5 <= len(left) < len(undisturbed)
    assert left.items() <= undisturbed.items()
    report = embed(CONFIG, root)
    assert report.shards_present == len(left)
    assert embeddings(root) == undisturbed


@pytest.mark.slow
def test_on_two_nodes(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    root = prepared(str(tmp_path))
    command = [sys.executable, str(DRIVER), root, "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["shards_written"] == 6 * SHARDS
    assert embeddings(root) == undisturbed
    assert verify(root).ok


@pytest.mark.slow
def test_a_worker_s_error_arrives_as_it_was_raised(ray_local: None, tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    write_dataset(root, shards=1)
    storage = open_storage(root)
    key = reference_key(str(read_manifest(storage).reference_digest))
    storage.delete(key)
    with pytest.raises(InputError, match=r"reference/\w+\.fa\.gz: reference file does not exist$"):
        embed(CONFIG, root)
    assert not [key for key in storage.list("embeddings/") if key.endswith("manifest.json")]


@pytest.mark.parametrize("gcs_address", ["127.0.0.1:6379", "10.0.0.5:6379"])
def test_actors_that_leave_no_room_are_refused(
    ray_local: None, gcs_address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a machine's own cluster an error; elsewhere the cluster may grow, and it is a warning."""
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(gcs_address=gcs_address))
    require_room(CONFIG, 1)
    require_room(CONFIG.edited(actors=9), 2)  # no more are started than there are shards
    require_room(CONFIG.edited(actors=9, least_actors=4), 9)
    for config, text in (
        (CONFIG.edited(actors=5), "5 actors need 5 CPU of 4 in the cluster; lower actors or"),
        (CONFIG.edited(actors=5, gpus_per_actor=1), "5 GPU of 0 in the cluster"),
    ):
        if gcs_address.startswith("127."):
            with pytest.raises(ClusterError, match=text):
                require_room(config, 9)
        else:
            require_room(config, 9)
            assert text in caplog.text
