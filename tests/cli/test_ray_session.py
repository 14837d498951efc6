"""A local Ray is on loopback, whoever imported ray first; a cluster that is not there is said soon."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from contextlib import closing

import pytest

from isoformer import ray_session as module
from isoformer.errors import ClusterError
from isoformer.ray_session import has_gpu

SESSION = """
import ray
from isoformer.ray_session import RayConfig, ray_session
with ray_session(RayConfig()):
    print(ray.get_runtime_context().gcs_address, *(node["NodeManagerAddress"] for node in ray.nodes()))
"""

CONNECT = """
import os, sys
from isoformer.errors import ClusterError
from isoformer.ray_session import RayConfig, ray_session
before = dict(os.environ)
try:
    with ray_session(RayConfig(address=sys.argv[1])):
        print("connected")
except ClusterError as error:
    print(error)
assert not [name for name in os.environ if name.startswith("RAY_gcs") and name not in before]
"""


def test_a_local_ray_listens_on_loopback_though_ray_was_imported_before() -> None:
    done = subprocess.run([sys.executable, "-c", SESSION], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    gcs, node = done.stdout.split()
    assert gcs.startswith("127.0.0.1:") and node == "127.0.0.1"


def test_a_gpu_that_an_autoscaler_would_bring_counts(
    ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private.state import state

    assert state.get_max_resources_from_cluster_config() is None and not has_gpu()
    monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: {"CPU": 64, "GPU": 8})
    assert has_gpu()


def test_a_cluster_that_is_not_there_is_said_before_ray_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.1)
    with _nobody_listens() as bound:
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"RAY_ADDRESS: {address}: no cluster answers there .*refused"):
            module._require_answer(address)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1:head", "[::1", "10.0.0.1:99999", "ray://"])
def test_an_address_without_host_and_port_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match=r"must be the head's host:port, as 10\.0\.0\.1:6379"):
        module._require_answer(address)


def test_a_password_in_an_address_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.1)
    with _nobody_listens() as bound, pytest.raises(ClusterError) as caught:
        module._require_answer(f"ray://anna:s3cret@127.0.0.1:{bound.getsockname()[1]}")
    assert "s3cret" not in str(caught.value)


def test_a_head_that_is_still_starting_is_waited_for() -> None:
    with _nobody_listens() as head:
        starting = threading.Timer(1.0, head.listen)
        starting.start()
        module._require_answer(f"127.0.0.1:{head.getsockname()[1]}")
        starting.join()


def test_a_server_that_is_no_head_is_given_up_on() -> None:
    with _nobody_listens() as server:
        server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", CONNECT, address], capture_output=True, text=True, timeout=120,
            env={**os.environ, "RAY_py_gcs_connect_timeout_s": "1"},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout
        == f"Ray at {address} cannot be reached or started: Failed to connect to Ray cluster at {address}\n"
    )


def _nobody_listens() -> closing[socket.socket]:
    """A port of this test's own, bound and not listened at: a connection is refused."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return closing(bound)
