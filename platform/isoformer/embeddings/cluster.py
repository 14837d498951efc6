"""What embedding asks of the cluster besides work: nodes, room for workers, the end of one that hangs.

`LiveCluster` is all of the world that the driver of a run sees; a benchmark simulates another.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any, Protocol, cast

from isoformer.embeddings.config import EmbedConfig
from isoformer.errors import ClusterError


class Cluster(Protocol):
    """Ray, the clock and chance. `ray`: the module, or what has its `remote`, `wait`, `get` and `kill`."""

    ray: Any

    def now(self) -> float:
        """Seconds that never go back."""
        ...

    def sleep(self, seconds: float) -> None: ...

    def jitter(self) -> float:
        """Between a half and one, at random."""
        ...

    def require_room(self, config: EmbedConfig, workers: int) -> None: ...

    def require_own_node(self) -> None: ...

    def kill_process(self, *, node: str, pid: int) -> None: ...


class LiveCluster:
    """The cluster that Ray is connected to."""

    def __init__(self) -> None:
        import ray

        self.ray: Any = ray  # whose types know less of it than it can do

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def jitter(self) -> float:
        return random.uniform(0.5, 1)

    def require_room(self, config: EmbedConfig, workers: int) -> None:
        require_room(config, workers)

    def require_own_node(self) -> None:
        require_own_node()

    def kill_process(self, *, node: str, pid: int) -> None:
        kill_process(node=node, pid=pid)


def require_room(config: EmbedConfig, workers: int) -> None:
    """ClusterError where the workers that the run must have do not fit: it would wait for ever.

    A cluster that is not on loopback may grow by itself, so that there it is only a warning.
    """
    import ray

    cluster = cast(Any, ray).cluster_resources()
    least = min(config.least_actors or config.actors, workers)
    needed = {"CPU": least * config.cpus_per_actor, "GPU": least * config.gpus_per_actor}
    short = [
        f"{count:g} {name} of {cluster.get(name, 0):g}"
        for name, count in needed.items()
        if count > cluster.get(name, 0)
    ]
    if not short:
        return
    text = (
        f"{least} actors need {' and '.join(short)} in the cluster; "
        "lower actors or least_actors, cpus_per_actor or gpus_per_actor"
    )
    if str(ray.get_runtime_context().gcs_address).startswith("127."):
        raise ClusterError(text)
    logging.getLogger("isoformer").warning("%s, unless the cluster grows", text)


def require_own_node() -> None:
    """ClusterError where the driver's own node is gone: all that it asks for would be waited for in vain."""
    import ray

    own = node_id()
    if not any(node["Alive"] and node["NodeID"] == own for node in cast(Any, ray).nodes()):
        raise ClusterError(
            f"the node of this driver ({own}) has died; what is published stays: run the same command again "
            "and it goes on"
        )


def alive_nodes() -> int:
    """Nodes of the connected cluster; 1 where Ray is not connected (there may be nothing to do).

    Does not import Ray by itself: what binds Ray to loopback must be in the environment before that.
    """
    if "ray" not in sys.modules:
        return 1
    import ray

    return sum(node["Alive"] for node in cast(Any, ray).nodes()) if ray.is_initialized() else 1


def node_id() -> str:
    """Ray's name of this node; "" in a process without Ray."""
    if "ray" not in sys.modules:
        return ""
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def kill_process(*, node: str, pid: int) -> None:
    """SIGKILL to a worker of ours on its node: a process that is stopped or hangs answers nothing else."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    cast(Any, ray).remote(num_cpus=0, scheduling_strategy=strategy)(_kill).remote(pid)


def _kill(pid: int) -> None:
    command = Path(f"/proc/{pid}/cmdline")
    if command.exists() and b"EncodeWorker" in command.read_bytes():
        os.kill(pid, signal.SIGKILL)
