"""One set of surroundings and one ledger for the whole suite, and what the pipeline makes in peace."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.attempts import ATTEMPT_SECONDS, Cluster, attempted
from chaos.ledger import Ledger
from chaos.pipeline import VERBS, Peace, cut_sources, results
from chaos.surroundings import Database, Surroundings, mount, placed
from faulty_s3 import faulty_s3
from isoformer.benchmark.local_mlflow import LocalMlflow
from services import S3Server

NODES = 2


@pytest.fixture(scope="session")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """Written at the end, whatever failed; to CHAOS_REPORT, too, where that is set."""
    ledger = Ledger(int(os.environ.get("CHAOS_SEED", time.time_ns() % 1_000_000)))
    print(f"\nCHAOS_SEED={ledger.seed}")
    yield ledger
    paths = [tmp_path_factory.mktemp("report") / "report.json", os.environ.get("CHAOS_REPORT")]
    for path in (Path(path) for path in paths if path):
        ledger.write(path)
        print(f"\nCHAOS_SEED={ledger.seed}: {len(ledger.faults)} faults; {path}")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """With `scratch` in it, a file system of its own where that may be made: every process's TMPDIR."""
    folder = tmp_path_factory.mktemp("chaos")
    scratch = folder / "scratch"
    scratch.mkdir()
    mounted = mount(scratch)
    yield folder
    if mounted:
        subprocess.run(["umount", "--lazy", str(scratch)], check=True)


@pytest.fixture(scope="session")
def around(
    s3_server: S3Server, folder: Path, tmp_path_factory: pytest.TempPathFactory, ledger: Ledger
) -> Iterator[Surroundings]:
    draw = random.Random(ledger.seed)
    with faulty_s3(s3_server.endpoint, ledger.seed) as proxy:
        patch = pytest.MonkeyPatch()
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        patch.setenv("AWS_MAX_ATTEMPTS", "12")
        mlflow = LocalMlflow(tmp_path_factory.mktemp("mlflow")).start()
        database = Database()
        cluster = Cluster(
            NODES, folder / "cluster.err", {"TMPDIR": str(folder / "scratch"), "RAY_TMPDIR": "/tmp"}
        )
        around = Surroundings(s3_server, proxy, mlflow, database, cluster, draw, folder)
        cluster.start()
        ledger.masked |= {str(folder): "FOLDER", proxy.endpoint: "ENDPOINT", s3_server.endpoint: "ENDPOINT"}
        ledger.masked |= {mlflow.url: "TRACKING", str(database.folder): "DATABASE"}
        yield around
        around.end()
        patch.undo()


@pytest.fixture(scope="session")
def sources(folder: Path) -> dict[str, Any]:
    return cut_sources(folder)


@pytest.fixture(scope="session")
def peace(around: Surroundings, sources: dict[str, Any], ledger: Ledger) -> Peace:
    place = placed(around, around.s3.root(), "peace", sources)
    requests, seconds = dict[str, int](), dict[str, float]()
    for verb, options in VERBS.items():
        before, began = around.proxy.requests, time.monotonic()
        command = ["--config", str(place.settings), *options]
        with attempted(verb, command, around.folder, around.environment()) as attempt:
            assert attempt.process.wait(timeout=ATTEMPT_SECONDS) == 0, attempt.tail()
        requests[verb], seconds[verb] = around.proxy.requests - before, time.monotonic() - began
    print(f"\nin peace: {requests} requests, { ({v: round(s) for v, s in seconds.items()}) } s")
    return Peace(results(place), requests)
