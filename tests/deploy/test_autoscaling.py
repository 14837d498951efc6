"""Ray's own autoscaler on cluster.yaml, in an account in memory: the right nodes come, and they go again.

Autoscaler, scheduler and AWS provider are those that run on the head. Only what waits in the cluster (Ray's
GCS) and EC2 itself (moto) is made here; nothing is installed on a node.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from deploy.made_cloud import Cloud, policy_actions, tags

HEAD_TAGS: Final = {
    "ray-node-type": "head",
    "ray-user-node-type": "head",
    "ray-launch-config": "made",
    "ray-node-name": "made",
}
IDLE_MILLISECONDS: Final = 60_000 * 60


class Cluster:
    """What the autoscaler hears of Ray: what waits, and the nodes that run. A drained node is gone."""

    address = "127.0.0.1:6379"

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.waiting: list[dict[str, float]] = []
        self.drained: set[bytes] = set()
        self.version = 0

    def get_cluster_resource_state(self) -> bytes:
        from ray.core.generated import autoscaler_pb2 as messages

        self.version += 1
        state = messages.ClusterResourceState(cluster_resource_state_version=self.version)
        for bundle in self.waiting:
            request = messages.ResourceRequest(resources_bundle=bundle)
            state.pending_resource_requests.add(request=request, count=1)
        for instance in self.cloud.instances():
            self._add_node(state, instance)
        return messages.GetClusterResourceStateReply(cluster_resource_state=state).SerializeToString()

    def drain_node(self, *, node_id: str, **_: Any) -> tuple[bool, str]:
        self.drained.add(bytes.fromhex(node_id))
        return True, ""

    def _add_node(self, state: Any, instance: dict[str, Any]) -> None:
        from ray.core.generated import autoscaler_pb2 as messages

        node_type = tags(instance)["ray-user-node-type"]
        resources = self.cloud.bootstrapped["available_node_types"][node_type]["resources"]
        if node_type == "head":
            resources = {**resources, "node:__internal_head__": 1.0}  # how Ray tells a head
        node_id = instance["InstanceId"].encode().ljust(28)
        idle = node_type != "head" and not self.waiting
        running = messages.NodeStatus.IDLE if idle else messages.NodeStatus.RUNNING
        state.node_states.add(
            node_id=node_id,
            instance_id=instance["InstanceId"],
            ray_node_type_name=node_type,
            total_resources=resources,
            available_resources=resources,
            status=messages.NodeStatus.DEAD if node_id in self.drained else running,
            idle_duration_ms=IDLE_MILLISECONDS if idle else 0,
        )


class Autoscaled:
    """The autoscaler that `ray up` puts on the head, driven by hand."""

    def __init__(self, cloud: Cloud, folder: Path) -> None:
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
        from ray.autoscaler.v2.autoscaler import Autoscaler
        from ray.autoscaler.v2.instance_manager.config import FileConfigReader

        config = cloud.bootstrapped
        self.cloud, self.cluster = cloud, Cluster(cloud)
        head = config["available_node_types"]["head"]["node_config"]
        AWSNodeProvider(config["provider"], config["cluster_name"]).create_node(head, HEAD_TAGS, 1)
        file = folder / "bootstrapped.yaml"
        without_ssh = {**config["provider"], "disable_node_updaters": True}
        used = {key: value for key, value in config.items() if key != "head_node"}
        file.write_text(yaml.safe_dump({**used, "provider": without_ssh}))
        self._autoscaler = Autoscaler("made", FileConfigReader(str(file)), self.cluster)

    def until(self, reached: Callable[[Counter[str]], bool], seconds: float = 30) -> Counter[str]:
        """Workers by node type, once they are as wanted (or when time is up)."""
        end = time.monotonic() + seconds
        while True:
            assert self._autoscaler.update_autoscaling_state() is not None
            workers = self.cloud.running() - Counter(head=1)
            if reached(workers) or time.monotonic() > end:
                return workers
            time.sleep(0.1)


@pytest.fixture
def autoscaled(cloud: Cloud, tmp_path: Path) -> Iterator[Autoscaled]:
    yield Autoscaled(cloud, tmp_path)
    cloud.ec2.terminate_instances(InstanceIds=[one["InstanceId"] for one in cloud.instances()])


@pytest.mark.parametrize(
    ("waiting", "wanted"),
    [
        ([{"CPU": 1.0}] * 17, {"cpu_worker": 2}),
        ([{"CPU": 1.0, "GPU": 1.0}] * 2, {"gpu_worker": 2}),
        ([{"GPU": 0.25}] * 4, {"gpu_worker": 1}),
        ([{"CPU": 1.0}] * 16 + [{"CPU": 1.0, "GPU": 1.0}], {"cpu_worker": 1, "gpu_worker": 1}),
    ],
    ids=["work for CPUs", "a GPU each", "trials that share a GPU", "both"],
)
def test_what_waits_brings_the_nodes_it_needs_and_none_stay(
    autoscaled: Autoscaled, waiting: list[dict[str, float]], wanted: dict[str, int]
) -> None:
    assert autoscaled.until(lambda workers: workers != {}, seconds=0.5) == {}, "nothing waits: no workers"
    autoscaled.cluster.waiting = waiting
    assert autoscaled.until(lambda workers: workers == wanted) == wanted
    autoscaled.cluster.waiting = []
    assert autoscaled.until(lambda workers: workers == {}) == {}


def test_workers_are_spot_instances_with_the_nodes_role(autoscaled: Autoscaled) -> None:
    autoscaled.cluster.waiting = [{"CPU": 1.0, "GPU": 1.0}]
    autoscaled.until(lambda workers: workers == {"gpu_worker": 1})
    (worker,) = [one for one in autoscaled.cloud.instances() if one["InstanceType"] == "g6e.4xlarge"]
    assert worker["InstanceLifecycle"] == "spot"
    assert worker["IamInstanceProfile"]["Arn"].endswith("instance-profile/isoformer-node")
    assert tags(worker)["ray-cluster-name"] == "isoformer", (
        "what head-policy.json lets the head launch and end"
    )
    assert [group["GroupId"] for group in worker["SecurityGroups"]] == [autoscaled.cloud.group]


def test_the_heads_policy_allows_what_the_autoscaler_asks_and_no_more(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.client import BaseClient

    asked: set[str] = set()
    call = BaseClient._make_api_call

    def noted(self: Any, operation: str, parameters: Any) -> Any:
        asked.add(f"{self.meta.service_model.service_name}:{operation}")
        return call(self, operation, parameters)

    autoscaled = Autoscaled(cloud, tmp_path)
    monkeypatch.setattr(BaseClient, "_make_api_call", noted)
    autoscaled.cluster.waiting = [{"CPU": 1.0}]
    autoscaled.until(lambda workers: workers == {"cpu_worker": 1})
    autoscaled.cluster.waiting = []
    autoscaled.until(lambda workers: workers == {})
    monkeypatch.undo()
    cloud.ec2.terminate_instances(InstanceIds=[one["InstanceId"] for one in cloud.instances()])
    # not seen here: AWS itself asks for these of a launch with tags, a role and an image's published name
    of_a_launch = {"ec2:CreateTags", "ssm:GetParameters", "iam:PassRole"}
    assert policy_actions("head-policy.json") == asked | of_a_launch
