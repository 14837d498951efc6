"""An embedding run on several local Ray nodes: `python -m … ROOT CONFIG NODES CPUS`; prints the report.

Every node is a Ray of its own on this machine's loopback, with CPUS logical CPUs.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from isoformer.embeddings.pipeline import embed
from isoformer.ray_session import RayConfig, ray_session
from isoformer.settings import load_settings

_OBJECT_STORE_BYTES = 128 << 20


def main(root: str, config: str, nodes: int, cpus: int) -> None:
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    from ray.cluster_utils import Cluster

    size: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": _OBJECT_STORE_BYTES}
    cluster: Any = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**size)
        with ray_session(RayConfig(address=cluster.address)):
            print(json.dumps(embed(load_settings(config).embed, root).to_json()))
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
