"""A sweep whose driver, worker or node is killed ends as one that nobody disturbed."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from isoformer.errors import StorageError
from isoformer.model import ModelConfig
from isoformer.storage import open_storage
from isoformer.sweep import SweepConfig, SweepResult, TrialRow, sweep
from isoformer.sweep.control import ask_for
from isoformer.sweep.data import SharedData
from isoformer.tracking import TrackingConfig
from isoformer.training.config import TrainConfig

KEYS: Any = {
    "rna": ("tiny-rna.11111111.pooled.f16.aaaaaaaa", "tiny-rna.11111111.bins-4.f16.bbbbbbbb"),
    "protein": ("tiny-protein.22222222.pooled.f16.cccccccc", "tiny-protein.22222222.bins-4.f16.dddddddd"),
}
BASE = TrainConfig(model=ModelConfig(modalities=("rna", "protein")), epochs=30, patience=30)
QUIET = TrackingConfig(enabled=False)
CONFIG = SweepConfig(
    trials=10, keys=KEYS, seed=2, grace_epochs=10, variants="fusion", checkpoint_seconds=0.0, concurrent=2
)

DRIVER = """
import pickle, sys
from isoformer.ray_session import RayConfig, ray_session
from isoformer.sweep import sweep
from isoformer.tracking import TrackingConfig

root, address, made = sys.argv[1:]
shared, config, base = pickle.load(open(made, "rb"))
with ray_session(RayConfig(address=address)):
    sweep(config, base, root, tracking=TrackingConfig(enabled=False), data=shared, resume=True)
"""


def identity(rows: list[TrialRow]) -> list[TrialRow]:
    """All of a row but the clock."""
    clock = dict.fromkeys(("seconds", "device_seconds", "training_seconds", "started", "ended"))
    return [replace(row, **clock, run="") for row in rows]  # type: ignore[arg-type]


@contextmanager
def driver(root: Path, made: Path) -> Iterator[subprocess.Popen[bytes]]:
    import ray

    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", DRIVER, str(root), address, str(made)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def written(root: Path) -> int:
    """Epochs and ended trials that the study holds."""
    database = root / "studies" / "sweep" / "study.db"
    if not database.exists():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
            count = "SELECT COUNT(*) FROM trial_intermediate_values"
            ended = "SELECT COUNT(*) FROM trials WHERE state != 'RUNNING'"
            return sum(connection.execute(query).fetchone()[0] for query in (count, ended))
    except sqlite3.OperationalError:  # its tables are being made
        return 0


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 120) -> bool:
    """False where the driver ended first."""
    deadline = time.monotonic() + seconds
    while not reached():
        if process.poll() is not None:
            assert process.returncode == 0, process.stderr and process.stderr.read().decode()[-2000:]
            return False
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)
    return True


def trial_workers() -> list[psutil.Process]:
    """Processes that run a trial now, of any driver of this test's cluster."""
    raylet = next(p for p in psutil.Process().children(recursive=True) if "raylet" in p.name())
    return [child for child in raylet.children() if "ImplicitFunc" in " ".join(child.cmdline())]


@pytest.fixture(scope="module")
def undisturbed(ray_local: None, shared: SharedData, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    root = tmp_path_factory.mktemp("undisturbed")
    return sweep(CONFIG, BASE, str(root), tracking=QUIET, data=shared)


def pickled(root: Path, shared: SharedData, config: SweepConfig = CONFIG) -> Path:
    """What a driver of its own process is given."""
    made = root / "made.pickle"
    made.write_bytes(pickle.dumps((shared, config, BASE)))
    return made


def disturbed(
    root: Path, shared: SharedData, kills: int, *, what: tuple[str, ...], seed: int
) -> tuple[SweepResult, list[str]]:
    """Kill at `kills` random points of the study's progress, then let a last driver come to the end."""
    random_points = random.Random(seed)
    made = pickled(root, shared)
    killed: list[str] = []
    while len(killed) < kills:
        with driver(root, made) as process:
            kind = what[len(killed) % len(what)]
            if not progressed(root, random_points.randint(1, 40), process):
                break
            time.sleep(random_points.random() * 0.2)
            if kind == "driver":
                os.killpg(process.pid, signal.SIGKILL)
            else:
                kill_a_worker(random_points)
                progressed(root, 15, process)
            killed.append(kind)
    return sweep(CONFIG, BASE, str(root), tracking=QUIET, data=shared, resume=True), killed


def progressed(root: Path, steps: int, process: subprocess.Popen[bytes]) -> bool:
    """Wait for so many epochs and ends more; False where the driver came to its end first."""
    goal = written(root) + steps
    return wait_until(lambda: written(root) >= goal, process)


def kill_a_worker(choose: random.Random) -> None:
    victims = trial_workers()
    assert victims, "a trial's worker is there to be killed"
    choose.choice(victims).kill()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kills_and_a_pause_change_nothing(
    undisturbed: SweepResult, shared: SharedData, tmp_path: Path
) -> None:
    made = pickled(tmp_path, shared)
    with driver(tmp_path, made) as process:
        assert progressed(tmp_path, 20, process)
        kill_a_worker(random.Random(1))
        assert progressed(tmp_path, 30, process), "another worker goes on"
        os.killpg(process.pid, signal.SIGKILL)
    with driver(tmp_path, made) as process:
        assert progressed(tmp_path, 30, process)
        ask_for(open_storage(str(tmp_path)), "sweep", "pause")
        process.wait(timeout=120)
    found = json.loads((tmp_path / "studies" / "sweep" / "trials.json").read_text())
    assert found["status"] == "paused" and "running" in [trial["state"] for trial in found["trials"]]

    result = sweep(CONFIG, BASE, str(tmp_path), tracking=QUIET, data=shared, resume=True)
    assert identity(result.trials) == identity(undisturbed.trials)
    assert {row.state for row in result.trials} <= {"complete", "pruned"} and len(result.trials) == 10
    assert not list((tmp_path / "studies" / "sweep").glob("checkpoints/*")), "ended trials leave none"


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_ten_kills_at_random_points_change_nothing(
    undisturbed: SweepResult, shared: SharedData, tmp_path: Path
) -> None:
    killed: list[str] = []
    for round_number in range(5):  # a study is over before ten kills fit in
        if len(killed) >= 10:
            break
        root = tmp_path / str(round_number)
        root.mkdir()
        result, now = disturbed(
            root, shared, min(5, 10 - len(killed)), what=("driver", "worker"), seed=10 + round_number
        )
        killed += now
        assert identity(result.trials) == identity(undisturbed.trials)
    assert len(killed) == 10, killed


def test_a_request_needs_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no sweep of this name was begun"):
        ask_for(open_storage(str(tmp_path)), "sweep", "pause")


NODES = """
import json, os, pickle, signal, sys, threading, time
os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
from ray.cluster_utils import Cluster
from isoformer.ray_session import RayConfig, ray_session
from isoformer.sweep import sweep
from isoformer.tracking import TrackingConfig

root, made = sys.argv[1:]
shared, config, base = pickle.load(open(made, "rb"))
size = {"object_store_memory": 128 << 20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **size})
nodes = [cluster.add_node(num_cpus=1, **size) for _ in range(2)]
ended = []

def progress(row):
    ended.append(row)
    if len(ended) == 2:  # a node goes in the middle of a trial, with everything on it
        os.kill(nodes[0].all_processes["raylet"][0].process.pid, signal.SIGKILL)

with ray_session(RayConfig(address=cluster.address)):
    sweep(config, base, root, tracking=TrackingConfig(enabled=False), data=shared, progress=progress)
os._exit(0)
"""


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_node_that_is_killed_changes_nothing(
    undisturbed: SweepResult, shared: SharedData, tmp_path: Path
) -> None:
    made = pickled(tmp_path, shared, CONFIG.edited(max_failures=4))
    done = subprocess.run(
        [sys.executable, "-c", NODES, str(tmp_path), str(made)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "studies" / "sweep" / "trials.json").read_text())
    ours = [(t["number"], t["state"], t["value"], t["params"]) for t in found["trials"]]
    assert ours == [(t.number, t.state, t.value, t.params) for t in undisturbed.trials]
