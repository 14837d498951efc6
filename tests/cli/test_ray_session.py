"""A local Ray is on loopback, whoever imported ray first."""

from __future__ import annotations

import subprocess
import sys

import pytest

from isoformer.ray_session import has_gpu

SESSION = """
import ray
from isoformer.ray_session import RayConfig, ray_session
with ray_session(RayConfig()):
    print(ray.get_runtime_context().gcs_address, *(node["NodeManagerAddress"] for node in ray.nodes()))
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
