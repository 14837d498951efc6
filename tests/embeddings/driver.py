"""An embedding run as a program of its own: `python driver.py ROOT [NODES]`; prints the report."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable

from isoformer.embeddings.config import EmbedConfig, EncoderJob
from isoformer.embeddings.pipeline import EmbedProgress, embed
from isoformer.ray_session import RayConfig, ray_session

CONFIG = EmbedConfig(
    encoders=tuple(
        EncoderJob(name=f"composition-{modality}", resolution=resolution)
        for modality in ("dna", "rna", "protein")
        for resolution in ("pooled", "bins:16")
    ),
    threads_per_actor=1,
)


def run(
    config: EmbedConfig, root: str, nodes: int = 1, progress: Callable[[EmbedProgress], None] | None = None
) -> None:
    """On a private Ray: one node of four CPUs, or several of two with an actor for each."""
    if nodes == 1:
        with ray_session(RayConfig(num_cpus=4, object_store_mb=100)):
            print(json.dumps(embed(config, root, progress=progress).to_json()))
        return
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 2, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**size)
        with ray_session(RayConfig(address=cluster.address)):
            print(json.dumps(embed(config.edited(actors=nodes), root, progress=progress).to_json()))
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    run(CONFIG, sys.argv[1], *map(int, sys.argv[2:]))
