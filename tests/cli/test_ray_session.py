"""A local Ray is on loopback, whoever imported ray first."""

from __future__ import annotations

import subprocess
import sys

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
