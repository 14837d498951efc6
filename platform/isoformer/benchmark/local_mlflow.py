"""A real `mlflow server` on loopback and a free port, which can be killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil

from isoformer.errors import ClusterError


class LocalMlflow:
    """A server with a SQLite store and artefacts under `folder`, both there still when it is started again.

    `options` are added to its command line and replace nothing; `environment` is added to this process's own.
    """

    def __init__(
        self, folder: Path, *, options: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.options = tuple(options)
        self.environment = dict(environment or {})
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, timeout_seconds: float = 200) -> Self:
        """Start and wait until it answers. ClusterError with the end of its log where it does not."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--workers", "1"]
        if "--artifacts-destination" not in self.options:
            command += ["--artifacts-destination", str(self.folder / "artifacts")]
        quick = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.options],
                stdout=log, stderr=log, env={**os.environ, **quick, **self.environment},
                start_new_session=True, cwd=self.folder,
            )  # fmt: skip
        self._wait_until_up(time.monotonic() + timeout_seconds)
        return self

    def kill(self) -> None:
        """As hard as can be: with its whole process group."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def cpu_seconds(self) -> float:
        """What the server and its workers have spent so far."""
        assert self.process is not None, "start first"
        root = psutil.Process(self.process.pid)
        times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
        return sum(spent.user + spent.system for spent in times)

    @property
    def log(self) -> Path:
        """What the server has said."""
        return self.folder / "server.log"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _wait_until_up(self, deadline: float) -> None:
        assert self.process is not None
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.3)
        self.kill()
        raise ClusterError(f"mlflow server did not start:\n{self.log.read_text()[-2000:]}")
