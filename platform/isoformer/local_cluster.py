"""A Ray cluster of several nodes on this machine's loopback: what will run in a cloud, tried without one.

`up` starts one process that owns every node and leaves its state and its log in the cache folder; `down`
ends it, and only it. Every port asks for Ray's token, which is made where there is none. Jobs inherit the
environment that `up` is called in: credentials for S3 and MLflow never travel with a job.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

import psutil

from isoformer.errors import ClusterError

HOST: Final = "127.0.0.1"
DASHBOARD_PORT: Final = 8265
_START_ATTEMPTS: Final = 3
_START_SECONDS: Final = 180.0
_STOP_SECONDS: Final = 40.0
_OBJECT_STORE_BYTES: Final = 200 << 20


@dataclass(frozen=True)
class LocalCluster:
    """A cluster that is up. `created` tells its process from a later one of the same number."""

    pid: int
    created: float
    gcs_address: str
    dashboard: str
    nodes: int
    cpus_per_node: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def up(*, nodes: int = 2, cpus: int = 2, port: int = DASHBOARD_PORT) -> LocalCluster:
    """Start a cluster and wait until it takes jobs; `port` 0 is any free one.

    ClusterError where one is up already, the port is taken, or it does not come up.
    """
    if (running := current()) is not None:
        raise ClusterError(
            f"a local cluster is up already, at {running.dashboard}; `isoformer cluster down` ends it"
        )
    port = _free_port(port)
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    _state().unlink(missing_ok=True)
    for attempt in range(1, _START_ATTEMPTS + 1):
        running = _started(nodes, cpus, port, folder)
        if running is not None:
            return running
        said = log_file().read_text(errors="replace").strip()
        if attempt == _START_ATTEMPTS or "timed out during startup" not in said:  # a busy machine's
            break
    raise ClusterError(
        f"the local cluster did not come up; {log_file()} ends with: {said[-1500:] or 'nothing'}"
    )


def down() -> LocalCluster | None:
    """End the cluster that is up, every process of it; None where there is none."""
    running = current()
    if running is None:
        return None
    process = psutil.Process(running.pid)
    family = [process, *process.children(recursive=True)]
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=_STOP_SECONDS)
    for one in alive:
        one.kill()
    psutil.wait_procs(alive, timeout=10)
    _state().unlink(missing_ok=True)
    return running


def current() -> LocalCluster | None:
    """The cluster that is up, if any."""
    try:
        found = LocalCluster(**json.loads(_state().read_text()))
        same = abs(psutil.Process(found.pid).create_time() - found.created) < 1
    except (OSError, ValueError, TypeError, psutil.NoSuchProcess):
        return None
    return found if same else None


def token_file() -> Path:
    """Where Ray looks for its token: RAY_AUTH_TOKEN_PATH, or else its own default."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def log_file() -> Path:
    """What the process that owns the nodes has said."""
    return _folder() / "cluster.log"


def _started(nodes: int, cpus: int, port: int, folder: Path) -> LocalCluster | None:
    """None where its process ended or took too long."""
    command = [sys.executable, "-m", "isoformer.local_cluster", *map(str, (nodes, cpus, port))]
    with log_file().open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **_environment()}, start_new_session=True,
            cwd=folder,
        )  # fmt: skip
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if (running := current()) is not None:
            return running
        time.sleep(0.2)
    process.kill()
    process.wait()
    return None


def _environment() -> Mapping[str, str]:
    """Of every node: on loopback only, with a token; the `python` of a job's command is this one."""
    _make_token(token_file())
    return {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file()),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_BACKEND_LOG_LEVEL": os.environ.get("RAY_BACKEND_LOG_LEVEL", "fatal"),
        "RAY_prestart_worker_first_driver": "0",
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "150",  # of a busy machine
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def _make_token(path: Path) -> None:
    """A token that only this user can read; one that is there stays."""
    if path.exists() or "RAY_AUTH_TOKEN" in os.environ:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise ClusterError(
                f"port {port} is taken: give another with --port, or 0 for any free one"
            ) from None
        return int(probe.getsockname()[1])


def _folder() -> Path:
    return Path(os.environ.get("ISOFORMER_CACHE") or "~/.cache/isoformer").expanduser() / "cluster"


def _state() -> Path:
    return _folder() / "cluster.json"


def _serve(nodes: int, cpus: int, port: int) -> None:
    """Own the nodes until asked to end, or until the head is gone."""
    from ray.cluster_utils import Cluster

    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    size: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": _OBJECT_STORE_BYTES}
    head = {"include_dashboard": True, "dashboard_host": HOST, "dashboard_port": port}
    agent = {"dashboard_agent_listen_port": 0}  # a fixed port is another Ray's on this machine, perhaps
    cluster: Any = Cluster(initialize_head=True, head_node_args={**size, **head, **agent})
    for number in range(1, nodes):  # in one folder, a node would unpack a job under another's feet
        cluster.add_node(**size, runtime_env_dir_name=f"runtime_resources_{number}")
    own = psutil.Process()
    state = LocalCluster(
        pid=own.pid,
        created=own.create_time(),
        gcs_address=cluster.gcs_address,
        dashboard=f"http://{HOST}:{port}",
        nodes=nodes,
        cpus_per_node=cpus,
    )
    _wait_for_agent(cluster)
    temporary = _state().with_suffix(".new")
    temporary.write_text(json.dumps(state.to_json()))
    temporary.rename(_state())
    while cluster.head_node.live_processes() and not asked.wait(1):
        pass
    cluster.shutdown()


def _wait_for_agent(cluster: Any) -> None:
    """What takes jobs on the head comes up after the dashboard."""
    import ray._raylet as raylet
    from ray.dashboard.consts import DASHBOARD_AGENT_ADDR_NODE_ID_PREFIX

    client = cast(Any, raylet).GcsClient(address=cluster.gcs_address)
    key = f"{DASHBOARD_AGENT_ADDR_NODE_ID_PREFIX}{cluster.head_node.node_id}".encode()
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if client.internal_kv_get(key, namespace=b"dashboard", timeout=30):
            return
        time.sleep(0.2)
    raise ClusterError("the head's agent, which takes jobs, does not come up")


if __name__ == "__main__":
    _serve(*map(int, sys.argv[1:]))
