"""Connect to Ray: the cluster that a submitted job runs in, or a private one on this machine's loopback.

The only module that starts Ray. Nothing here runs on import.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast
from urllib.parse import urlsplit

from pydantic import Field

from isoformer.config import FrozenConfig
from isoformer.errors import ClusterError
from isoformer.masking import without_password
from isoformer.s3_settings import ENCRYPTION, KMS_KEY

START_ATTEMPTS: Final = 3
ANSWER_SECONDS: Final = 10.0
"""In which a cluster's head must accept a connection. Ray by itself tries for a quarter of an hour."""
_CONNECT_ATTEMPTS: Final = "RAY_gcs_server_port_wait_time_s"
"""Ray's name for how often it tries to reach a head; one attempt takes 40 seconds."""
_LEAVES_LOOPBACK: Final = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
OFFLINE: Final = "HF_HUB_OFFLINE"
"""Set in every worker: weights come from the root, and a thousand actors never ask a hub."""
_JOB: Final = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where Ray tells a submitted job what its runtime environment is."""


class RayConfig(FrozenConfig):
    """Where the work runs. `address` null: the submitted job's own cluster, or else a local one."""

    address: str | None = None
    num_cpus: int = Field(
        default=4, ge=2, description="logical CPUs of a local cluster; below 4 some layouts wait"
    )
    object_store_mb: int = Field(default=256, ge=80)


@contextmanager
def ray_session(config: RayConfig) -> Iterator[None]:
    """Ray for the length of a block; a Ray that was already there is used and left as it is."""
    _quiet_environment()
    import ray

    if ray.is_initialized():
        yield
        return
    address = _address(config)
    _start(config, address)
    try:
        _require_loopback(address)
        yield
    finally:
        ray.shutdown()


@contextmanager
def quiet_ray_data() -> Iterator[None]:
    """Our own progress stands in for Ray Data's bars and plan dumps; its settings are put back."""
    from ray.data import DataContext

    context, logger = DataContext.get_current(), logging.getLogger("ray.data")
    bars, level = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        logger.setLevel(level)


def has_gpu() -> bool:
    """Whether the cluster has a GPU now, or an autoscaler that would bring one."""
    import ray
    from ray._private.state import state

    if ray.cluster_resources().get("GPU", 0) > 0:  # type: ignore[no-untyped-call]
        return True
    to_come = state.get_max_resources_from_cluster_config() or {}
    return to_come.get("GPU", 0) > 0


def _address(config: RayConfig) -> str | None:
    """Host and port of the cluster to connect to; None where a local one is to be started."""
    address = config.address or os.environ.get("RAY_ADDRESS")
    if address == "auto":
        from ray._private import services

        address = services.get_ray_address_from_environment("auto", None)
    return None if address in (None, "", "local") else address


def _start(config: RayConfig, address: str | None) -> None:
    """Connect, or start a local cluster; a start that a busy machine makes too slow is tried again."""
    import ray
    from ray._private import ray_constants

    leaves_loopback = address is not None and not address.startswith(("127.", "localhost:"))
    os.environ[_LEAVES_LOOPBACK] = str(int(leaves_loopback))
    # what the driver has read from the environment already, when ray was imported
    cast(Any, ray_constants).ENABLE_RAY_CLUSTER = leaves_loopback
    if address:
        _require_answer(address)
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            with _bounded_connection(address):
                ray.init(**_init_arguments(config, address))
            return
        except Exception as error:  # Ray raises the bare class where a node does not come up in 30 s
            ray.shutdown()
            slow = "timed out during startup" in str(error)
            if not slow and not isinstance(error, ConnectionError | RuntimeError | ValueError):
                raise
            if attempt == START_ATTEMPTS or not slow:
                where = without_password(address or "this machine")
                raise ClusterError(f"Ray at {where} cannot be reached or started: {error}") from error


def _require_answer(address: str) -> None:
    """ClusterError where `address` names no host and port, or nothing accepts connections there."""
    named = f"ray.address or RAY_ADDRESS: {without_password(address)}"
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise ClusterError(f"{named}: must be the head's host:port, as 10.0.0.1:6379")
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            socket.create_connection((host, port), timeout=ANSWER_SECONDS).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                why = error.strerror or error
                raise ClusterError(f"{named}: no cluster answers there ({why}); is it up?") from error
            time.sleep(0.5)


@contextmanager
def _bounded_connection(address: str | None) -> Iterator[None]:
    """What answers at an address but is no head is given up on after one attempt of Ray's."""
    if not address or _CONNECT_ATTEMPTS in os.environ:
        yield
        return
    os.environ[_CONNECT_ATTEMPTS] = "1"
    try:
        yield
    finally:
        del os.environ[_CONNECT_ATTEMPTS]


def _require_loopback(address: str | None) -> None:
    import ray

    found = str(ray.get_runtime_context().gcs_address)
    if not address and not found.startswith("127."):
        raise ClusterError(f"the local Ray listens at {found}, not on loopback alone")


def _init_arguments(config: RayConfig, address: str | None) -> dict[str, Any]:
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address:  # the workers of a cluster do not inherit what is set here
        return {"address": address, "runtime_env": {"env_vars": _worker_environment()}, **common}
    os.environ.setdefault(OFFLINE, "1")
    local = {
        "address": "local",  # never a cluster that somebody else left in this machine's global file
        "num_cpus": config.num_cpus,
        "include_dashboard": False,
        "object_store_memory": config.object_store_mb << 20,
    }
    return {**local, **common}


def _worker_environment() -> dict[str, str]:
    """What workers must know too. Ray refuses a variable that the submitted job's own environment sets."""
    wanted = {OFFLINE: "1"} if OFFLINE not in os.environ else {}
    wanted |= {name: os.environ[name] for name in (ENCRYPTION, KMS_KEY) if os.environ.get(name)}
    job = json.loads(os.environ.get(_JOB, "{}")).get("runtime_env", {}).get("env_vars", {})
    return {name: value for name, value in wanted.items() if name not in job}


def _quiet_environment() -> None:
    """No usage statistics, no noise; what the user has set is kept. Ray asks for a token by itself."""
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_DEDUP_LOGS": "1",
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # a local Ray's: a worker that idles wakes a hundred times a second, beside one that computes
        "RAY_prestart_worker_first_driver": "0",
    }.items():
        os.environ.setdefault(name, value)
