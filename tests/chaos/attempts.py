"""A verb as a process of ours, on a cluster of ours: started, watched, killed by the test alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

CLUSTER = Path(__file__).with_name("cluster.py")
JOBS = Path(__file__).parents[2] / "jobs"
ATTEMPT_SECONDS = 400.0
"""More than any attempt takes that is not stuck, on a busy machine."""
OURS = (
    "ray::Map(", "EncodeWorker", "tokenise_work", "Witness", "RayTrainWorker", "TrainController",
    "QueueActor", "ImplicitFunc",
)  # fmt: skip
"""In the titles of the processes that a verb has at work; Ray has others of its own."""


@dataclass
class Attempt:
    """One run of a verb's command."""

    verb: str
    process: psutil.Popen
    output: Path
    started_at: float = field(default_factory=time.monotonic)

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def error(self) -> str:
        """The one line in which a verb refuses. AssertionError where it ended in any other way."""
        lines = [line for line in self.said().splitlines() if line.startswith("error: ")]
        assert self.process.returncode == 2 and "Traceback" not in self.said() and lines, self.tail()
        return lines[-1]

    def tail(self) -> str:
        """How it ended, for a failing test."""
        return f"{self.verb} ended with {self.process.returncode}: {self.said()[-4000:]}"

    def said(self) -> str:
        """All of its standard error."""
        return self.output.with_suffix(".err").read_text()


@contextmanager
def attempted(
    verb: str, arguments: list[str], folder: Path, environment: dict[str, str]
) -> Iterator[Attempt]:
    """`python jobs/<verb>.py …`, which is over at the end of the block."""
    output = folder / f"{verb}-{time.monotonic_ns()}.out"
    with output.open("wb") as out, output.with_suffix(".err").open("wb") as error:
        process = psutil.Popen(
            [sys.executable, str(JOBS / f"{verb}.py"), *arguments, "--json"],
            stdout=out, stderr=error, cwd=folder, env={**os.environ, **environment},
        )  # fmt: skip
    try:
        yield Attempt(verb, process, output)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


class Cluster:
    """A head and nodes on loopback, in the hands of a process of its own. `family`: what was ever seen."""

    def __init__(self, nodes: int, log: Path, environment: dict[str, str]) -> None:
        self.nodes, self.log, self.environment = nodes, log, environment
        self.process: psutil.Popen | None = None
        self.family: set[psutil.Process] = set()
        self.address = ""

    def start(self) -> None:
        """Tried again where a busy machine makes a node come up too late."""
        for _ in range(5):
            self._start()
            if self.address:
                return
            self.end()
        raise AssertionError(f"the cluster did not start: {self.log.read_text()[-2000:]}")

    def _start(self) -> None:
        with self.log.open("wb") as log:
            self.process = psutil.Popen(
                [sys.executable, str(CLUSTER), str(self.nodes)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                env={**os.environ, **self.environment},
            )  # fmt: skip
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().decode().strip()

    def add_node(self) -> None:
        """One more, in a few seconds."""
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(b"add\n")
        self.process.stdin.flush()

    def workers(self) -> list[psutil.Process]:
        """Processes that are at work for a verb."""
        return [one for one in self._below() if any(name in title(one) for name in OURS)]

    def node_raylets(self) -> list[psutil.Process]:
        return [one for one in self._below() if _is_raylet(one, head=False)]

    def kill_head(self) -> None:
        """The head's processes, as one machine's; the nodes without it are no use, and go too."""
        below = self._below()
        for one in sorted(below, key=lambda one: not _is_head(one)):
            kill(one)
        self.end()

    def end(self) -> None:
        if self.process is not None:
            for one in [*self._below(), self.process, *self.family]:
                kill(one)
            self.process.wait()
        self.process, self.family = None, set()

    def _below(self) -> list[psutil.Process]:
        """Also what lost its parent."""
        assert self.process is not None
        with suppress(psutil.NoSuchProcess):
            self.family |= set(self.process.children(recursive=True))
        self.family = {one for one in self.family if one.is_running()}
        return sorted(self.family, key=lambda one: one.pid)


def title(process: psutil.Process) -> str:
    """Of a Ray worker: what it does."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return ""
    return command[0] if command else ""


def kill(process: psutil.Process) -> bool:
    """SIGKILL; False where it has ended by itself."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def _is_raylet(process: psutil.Process, *, head: bool) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return bool(command) and command[0].endswith("/raylet/raylet") and ("--head" in command) == head


def _is_head(process: psutil.Process) -> bool:
    return title(process).endswith("gcs_server") or _is_raylet(process, head=True)
