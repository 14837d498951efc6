"""Runs as processes of ours, what belongs to them, and the killing of it: never anything else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from embeddings.chaos_driver import PACK_SECONDS
from isoformer.storage import TEMPORARY_PREFIX

DRIVER = Path(__file__).with_name("chaos_driver.py")
RUN_SECONDS = 240.0
"""More than a run may take that is not stuck."""

Target = Literal["driver", "actor", "tokeniser", "witness", "node", "head"]
_IN_COMMAND_LINE = {"actor": "EncodeWorker", "tokeniser": "ray::tokenise_work", "witness": "ray::Witness"}


@dataclass
class Run:
    """One driver process and the Ray under it. `family`: every process that was ever seen below it."""

    root: str
    nodes: int
    process: psutil.Popen
    output: Path
    started_at: float
    family: set[psutil.Process] = field(default_factory=set)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started_at

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def told(self) -> list[dict[str, Any]]:
        """The lines of the driver: progress, at last the report."""
        lines = self.output.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def wait_for_progress(self) -> None:
        """Until Ray is up and the pool at work: before that there is no worker to be killed."""
        while self.is_running and not self.told():
            self.below()
            time.sleep(0.05)

    def report(self) -> dict[str, Any]:
        """Of a run that has to complete."""
        try:
            code = self.process.wait(timeout=RUN_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the run is stuck: {self.tail()}") from None
        assert code == 0, f"exit status {code}: {self.tail()}"
        return self.told()[-1]

    def tail(self) -> str:
        return self.output.read_text()[-3000:] + self.output.with_suffix(".err").read_text()[-3000:]

    def below(self) -> list[psutil.Process]:
        try:
            found = self.process.children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self.family |= set(found)
        return found

    def find(self, target: Target) -> list[psutil.Process]:
        if target == "driver":
            return [self.process] if self.is_running else []
        return [process for process in self.below() if _is(process, target)]

    def end(self, timeout_seconds: float = 30) -> None:
        """Ray's processes follow their driver, in their own time; AssertionError where a worker does not."""
        deadline = time.monotonic() + timeout_seconds
        while (alive := [one for one in self.family if _is_alive(one)]) and time.monotonic() < deadline:
            time.sleep(0.1)
        workers = [one for one in alive if _is(one, "actor")]
        for one in alive:
            one.kill()
        assert not workers, f"outlived their driver: {workers}"

    def stage(self) -> str:
        """How far it is, as far as that can be told from outside."""
        told = self.told()
        if not self.find("head"):
            return "start-up, before Ray"
        if not told:
            return "start-up, in Ray"
        if "uri" in told[-1]:
            return "shutting down"
        if told[-1]["shards_done"] == told[-1]["shards"]:
            return "finishing"
        if not told[-1]["tokens_done"]:
            return "loading"
        is_local = "://" not in self.root
        return "publishing" if is_local and any(Path(self.root).rglob(f"{TEMPORARY_PREFIX}*")) else "encoding"


@dataclass(frozen=True)
class Kill:
    """`seconds`: since the start of the driver. `recovery_seconds`: from the last kill to the end."""

    scenario: str
    target: Target
    stage: str
    seconds: float
    outcome: str = ""
    recovery_seconds: float = 0.0


@contextmanager
def started(root: str, folder: Path, *, nodes: int = 1, pack_seconds: float = 0.3) -> Iterator[Run]:
    """A run, which is over at the end of the block, and nothing of it is left."""
    output = folder / f"run-{time.monotonic_ns()}.out"
    environment = {"PYTHONPATH": str(DRIVER.parents[1]), "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    environment[PACK_SECONDS] = str(pack_seconds)
    with output.open("wb") as out, output.with_suffix(".err").open("wb") as error:
        process = psutil.Popen(
            [sys.executable, str(DRIVER), root, str(nodes)],
            stdout=out,
            stderr=error,
            env={**os.environ, "RAY_TMPDIR": "/tmp", **environment},  # sockets need a short path
        )
    run = Run(root, nodes, process, output, time.monotonic())
    try:
        yield run
    finally:
        run.below()
        if run.is_running:
            process.kill()
            process.wait()
        run.end()


def kill_at(run: Run, target: Target, seconds: float, scenario: str) -> Kill | None:
    """SIGKILL at an instant, or as soon after it as there is such a process; None where it was too late."""
    while run.is_running:
        found = run.find(target) if run.seconds >= seconds else []
        if found:
            aimed = Kill(scenario, target, run.stage(), run.seconds)
            if kill(found[0]):
                return aimed
        run.below()
        time.sleep(0.005 if run.seconds >= seconds else 0.05)
    return None


def kill(process: psutil.Process) -> bool:
    """Ours only: a descendant of this process. False where it has ended by itself."""
    try:
        assert psutil.Process() in process.parents(), f"{process} is not ours"
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def summary(kills: list[Kill]) -> str:
    def counted(name: str) -> str:
        values = [getattr(one, name) for one in kills]
        return ", ".join(f"{value} {values.count(value)}" for value in sorted(set(values)))

    return f"{len(kills)} kills: {counted('target')}; at: {counted('stage')}; then: {counted('outcome')}"


def write_report(kills: list[Kill], seed: int, path: Path) -> None:
    data = {"seed": seed, "summary": summary(kills), "kills": [asdict(one) for one in kills]}
    path.write_text(json.dumps(data, indent=1))


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is(process: psutil.Process, target: Target) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    if target in _IN_COMMAND_LINE:
        return _IN_COMMAND_LINE[target] in " ".join(command)
    is_raylet = bool(command) and command[0].endswith("/raylet/raylet")
    return is_raylet and ("--head" in command) == (target == "head")
