"""Exactly once, whatever is killed and whenever: always the bytes of a run that nobody disturbed.

`pytest -m long tests/embeddings/test_chaos.py`; CHAOS_SEED repeats one. Instants are drawn evenly over the
time that an undisturbed run takes from the start of its process to the end of it; for what a driver starts
and for nodes, from when Ray is up.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from embeddings.chaos_driver import CONFIG
from embeddings.chaos_processes import RUN_SECONDS, Kill, Run, Target, kill_at, started, summary, write_report
from embeddings.chaos_reader import watched
from isoformer.embeddings.admin import verify
from isoformer.embeddings.config import EmbedConfig
from isoformer.embeddings.pipeline import embed
from isoformer.embeddings.store import EmbeddingDataset
from isoformer.errors import ClusterError
from isoformer.storage import TEMPORARY_PREFIX, open_storage
from tiny_dataset import write_dataset

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
SHARDS = 12


@dataclass(frozen=True)
class Undisturbed:
    """What a run in peace makes, and how long it takes."""

    objects: dict[str, bytes]
    seconds: float
    embed_seconds: float


class Chaos:
    """A draw of instants, and what came of the kills."""

    def __init__(self, seed: int) -> None:
        self.seed, self.random, self.kills = seed, random.Random(seed), list[Kill]()

    def settle(self, kills: list[Kill], outcome: str, killed_at: float) -> None:
        seconds = time.monotonic() - killed_at
        self.kills += [replace(one, outcome=outcome, recovery_seconds=seconds) for one in kills]


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    chaos = Chaos(int(os.environ.get("CHAOS_SEED", time.time_ns() % 1_000_000)))
    print(f"\nCHAOS_SEED={chaos.seed}")
    yield chaos
    path = tmp_path_factory.mktemp("chaos") / "report.json"
    write_report(chaos.kills, chaos.seed, path)
    print(f"\nCHAOS_SEED={chaos.seed}: {summary(chaos.kills)}; {path}")


@pytest.fixture(scope="module")
def undisturbed(aws_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    root = prepared(str(folder / "root"))
    with started(root, folder) as run:
        report, seconds = run.report(), run.seconds
    assert report["failures"] == {}
    objects = embeddings(root)
    assert len(objects) == 3 * (SHARDS + 1)
    require_each_once(root)
    return Undisturbed(objects, seconds, report["wall_seconds"])


def prepared(root: str) -> str:
    write_dataset(root, shards=SHARDS, genes_per_shard=6)
    return root


def embeddings(root: str) -> dict[str, bytes]:
    storage = open_storage(root)
    return {key: storage.read_bytes(key) for key in storage.list("embeddings/")}


def require_each_once(root: str) -> None:
    """Every dataset has every sequence of its shards, once; everything hashes to what it says."""
    storage = open_storage(root)
    for key in storage.list("embeddings/"):
        if key.endswith("manifest.json"):
            dataset = EmbeddingDataset.open(storage, *key.split("/")[1:3])
            for index, shard in enumerate(dataset.manifest["shards"]):
                assert not shard["quarantined"]
                assert len(dataset.read_shard(index)) == shard["sequences"] > 0
    assert verify(root).ok


def require_as_undisturbed(root: str, undisturbed: Undisturbed) -> None:
    found = embeddings(root)
    assert sorted(found) == sorted(undisturbed.objects)
    assert found == undisturbed.objects
    require_each_once(root)


def all_killed(
    targets: list[Target], folder: Path, attempt: Callable[[str, list[Target]], list[Kill]]
) -> list[Kill]:
    """`attempt` on one prepared root after another, as some of the kills may come when a run is over."""
    kills: list[Kill] = []
    for count in range(4):
        if len(kills) < len(targets):
            kills += attempt(prepared(str(folder / f"root-{count}")), targets[len(kills) :])
    return kills


def killed_in_one_run(
    run: Run, targets: list[Target], seconds: float, chaos: Chaos, scenario: str
) -> list[Kill]:
    """One after the other, from now on and within so many seconds; fewer where the run is over before."""
    begin = run.seconds
    instants = sorted(chaos.random.uniform(0, seconds) for _ in targets)
    kills = [
        kill_at(run, target, begin + instant, scenario)
        for target, instant in zip(targets, instants, strict=True)
    ]
    return [kill for kill in kills if kill is not None]


@pytest.mark.parametrize("round_", [1, 2])
def test_workers_are_killed(tmp_path: Path, chaos: Chaos, undisturbed: Undisturbed, round_: int) -> None:
    """The run goes on by itself."""

    def attempt(root: str, targets: list[Target]) -> list[Kill]:
        with watched(root, undisturbed.objects), started(root, tmp_path) as run:
            run.wait_for_progress()
            kills = killed_in_one_run(run, targets, undisturbed.embed_seconds, chaos, "workers")
            killed_at = time.monotonic()
            report = run.report()
        require_as_undisturbed(root, undisturbed)
        assert sum(report["failures"].values()) <= sum(kill.target == "actor" for kill in kills)
        chaos.settle(kills, "went on", killed_at)
        return kills

    targets: list[Target] = ["actor", "actor", "actor", "tokeniser", "tokeniser"]
    chaos.random.shuffle(targets)
    assert len(all_killed(targets, tmp_path, attempt)) == len(targets)


def test_a_witness_is_killed(tmp_path: Path, chaos: Chaos, undisturbed: Undisturbed) -> None:
    """The process that would tell what a lost worker was at; then one more worker is lost."""
    root, targets = prepared(str(tmp_path / "root")), list[Target](["actor", "witness", "actor"])
    with watched(root, undisturbed.objects), started(root, tmp_path, pack_seconds=0.8) as run:
        kills = killed_in_one_run(run, targets, 0, chaos, "witness")
        killed_at = time.monotonic()
        run.report()
    require_as_undisturbed(root, undisturbed)
    chaos.settle(kills, "went on", killed_at)
    assert len(kills) == len(targets)


def test_tokenising_that_always_dies_has_an_end(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path / "root")
    write_dataset(root, shards=1)
    monkeypatch.setattr("isoformer.embeddings.pool.tokenise_work", lambda *_: os._exit(1))
    with pytest.raises(ClusterError, match=r"given up after 5 failures .tokenise_failed 5"):
        embed(EmbedConfig(encoders=CONFIG.encoders[-1:]), root)


@pytest.mark.parametrize("targets", [["driver", "head", "driver", "driver"], ["driver", "driver", "head"]])
def test_drivers_are_killed(
    tmp_path: Path, chaos: Chaos, undisturbed: Undisturbed, targets: list[Target]
) -> None:
    """Run again, killed again: what the killed ones have left is taken up, and the last one completes it."""

    def attempt(root: str, targets: list[Target]) -> list[Kill]:
        kills: list[Kill] = []
        with watched(root, undisturbed.objects), ExitStack() as stack:
            for target in targets:
                run = stack.enter_context(started(root, tmp_path))
                killed = killed_in_one_run(run, [target], undisturbed.seconds, chaos, "drivers")
                run.process.wait(timeout=RUN_SECONDS)  # a driver without its head ends, or starts another
                if not killed:
                    break
                kills += killed
            run = stack.enter_context(started(root, tmp_path))
            last = killed_while_a_manifest_is_written(run, root)
            killed_at = time.monotonic()
            stack.enter_context(started(root, tmp_path)).report()
        require_as_undisturbed(root, undisturbed)
        chaos.settle(kills + last, "run again", killed_at)
        return kills

    assert len(all_killed(targets, tmp_path, attempt)) == len(targets)


def killed_while_a_manifest_is_written(run: Run, root: str) -> list[Kill]:
    while run.is_running and not any(Path(root, "embeddings").rglob(f"{TEMPORARY_PREFIX}manifest*")):
        time.sleep(0.005)
    kill = kill_at(run, "driver", 0, "drivers")
    return [replace(kill, stage="writing a manifest")] if kill else []


def test_nodes_are_killed(tmp_path: Path, chaos: Chaos, undisturbed: Undisturbed) -> None:
    """Two of three nodes, one after the other; the head does the rest.

    It has two CPUs for three workers and for tokenising. Packs are slow, as workers outlive their node for
    some seconds.
    """

    def attempt(root: str, targets: list[Target]) -> list[Kill]:
        nodes = 1 + len(targets)
        with (
            watched(root, undisturbed.objects),
            started(root, tmp_path, nodes=nodes, pack_seconds=0.8) as run,
        ):
            run.wait_for_progress()
            kills = killed_in_one_run(run, targets, undisturbed.embed_seconds, chaos, "nodes")
            killed_at = time.monotonic()
            run.report()
        require_as_undisturbed(root, undisturbed)
        chaos.settle(kills, "went on", killed_at)
        return kills

    assert len(all_killed(["node", "node"], tmp_path, attempt)) == 2


def test_two_drivers_at_once_are_killed_on_s3(
    tmp_path: Path, chaos: Chaos, undisturbed: Undisturbed, s3_root: str
) -> None:
    """Of two rivals one is killed and run again, then the other; each has lost an actor before."""
    prepared(s3_root)
    kills: list[Kill] = []
    with watched(s3_root, undisturbed.objects), ExitStack() as stack:
        runs = [stack.enter_context(started(s3_root, tmp_path)) for _ in range(2)]
        for place in range(2):
            targets: list[Target] = ["actor", "driver"]
            kills += killed_in_one_run(runs[place], targets, undisturbed.seconds, chaos, "s3")
            runs[place].process.wait(timeout=RUN_SECONDS)
            runs[place] = stack.enter_context(started(s3_root, tmp_path))
        killed_at = time.monotonic()
        for run in runs:
            run.report()
    require_as_undisturbed(s3_root, undisturbed)
    chaos.settle(kills, "run again", killed_at)
    assert {"actor", "driver"} <= {kill.target for kill in kills}


def test_the_kills_were_many_and_of_all_kinds(chaos: Chaos) -> None:
    """Runs last: of every target, and enough of them."""
    if len({kill.scenario for kill in chaos.kills}) < 4:
        pytest.skip("counts the kills of all scenarios")
    targets = Counter(kill.target for kill in chaos.kills)
    assert targets.keys() >= {"driver", "actor", "tokeniser", "node", "head"}
    assert targets.total() >= 20
