"""What embedding asks of the cluster around Ray Data: nodes, room for actors, errors in one line."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from isoformer.embeddings.config import EmbedConfig
from isoformer.errors import ClusterError


def require_room(config: EmbedConfig) -> None:
    """ClusterError where the actors leave nothing to tokenise on: the run would wait for ever.

    A cluster that is not on loopback may grow by itself, so that there it is only a warning.
    """
    import ray

    cluster = cast(Any, ray).cluster_resources()
    needed = {
        "CPU": config.actors * config.cpus_per_actor + 1,
        "GPU": config.actors * config.gpus_per_actor,
    }
    short = [
        f"{count:g} {name} of {cluster.get(name, 0):g}"
        for name, count in needed.items()
        if count > cluster.get(name, 0)
    ]
    if not short:
        return
    text = (
        f"{config.actors} actors and one tokenise task need {' and '.join(short)} in the cluster; "
        "lower actors, cpus_per_actor or gpus_per_actor"
    )
    if str(ray.get_runtime_context().gcs_address).startswith("127."):
        raise ClusterError(text)
    logging.getLogger("isoformer").warning("%s, unless the cluster grows", text)


def alive_nodes() -> int:
    """Nodes of the connected cluster; 1 where Ray is not connected (there may be nothing to do).

    Does not import Ray by itself: what binds Ray to loopback must be in the environment before that.
    """
    if "ray" not in sys.modules:
        return 1
    import ray

    return sum(node["Alive"] for node in cast(Any, ray).nodes()) if ray.is_initialized() else 1


@contextmanager
def explained() -> Iterator[None]:
    """What only Ray can say (no room for an actor, a node lost for good, a bug in a worker), in one error."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        raise ClusterError(f"the embedding workers failed: {error}") from error
