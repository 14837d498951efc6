"""A Ray cluster on loopback as a program: `python cluster.py NODES`, a head without work and so many nodes.

Prints the head's address as soon as all are there; each line on standard input adds a node, and its end takes
the cluster down. Whoever starts it may kill any process of it.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any

os.environ |= {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_raylet_start_wait_time_s": "45",
    "RAY_worker_niceness": "0",
}
NODE: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 100 << 20}


def add_node(cluster: Any) -> None:
    """Tried again where it comes up too late for Ray, on a machine that is busy with what was killed."""
    for _ in range(2):
        with suppress(Exception):  # Ray raises just that
            cluster.add_node(**NODE)
            return
    cluster.add_node(**NODE)


def main(nodes: int) -> None:
    from ray.cluster_utils import Cluster

    head = {**NODE, "num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            add_node(cluster)
        print(cluster.address, flush=True)
        for _ in sys.stdin:
            add_node(cluster)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
