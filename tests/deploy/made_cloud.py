"""AWS as the walk-through leaves it, in memory: a network, roles with our policies, SSH from one address.

No test here asks a real cloud: moto answers every request of boto3, and the home folder is a temporary one.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "platform" / "deploy"
REGION, ACCOUNT, USERS_ADDRESS = "us-east-1", "123456789012", "203.0.113.7/32"
PLACEHOLDERS = {
    "BUCKET": "made-bucket", "PREFIX": "gtex", "REGION": REGION, "ACCOUNT": ACCOUNT,
    "KEY_ID": "1234abcd-12ab-34cd-56ef-1234567890ab",
}  # fmt: skip


def policy_text(name: str) -> str:
    """A policy file with its placeholders filled in, as the walk-through's `sed` does."""
    text = (DEPLOY / name).read_text()
    for placeholder, value in PLACEHOLDERS.items():
        text = text.replace(placeholder, value)
    return text


def cluster_file() -> dict[str, Any]:
    """cluster.yaml as it stands."""
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@dataclass
class Cloud:
    """An account in memory and the configuration that `ray up` makes of cluster.yaml."""

    ec2: Any
    group: str
    bootstrapped: dict[str, Any] = field(default_factory=dict)

    def instances(self) -> list[dict[str, Any]]:
        found = self.ec2.describe_instances()["Reservations"]
        return [one for group in found for one in group["Instances"] if one["State"]["Name"] == "running"]

    def running(self) -> Counter[str]:
        """Running instances by node type."""
        return Counter(tags(one)["ray-user-node-type"] for one in self.instances())


def tags(resource: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in resource.get("Tags", [])}


@contextmanager
def made_cloud(home: Path) -> Iterator[Cloud]:
    """The account after the walk-through's preparation and the first half of `ray up`."""
    from moto import mock_aws
    from moto.ec2.models.instance_types import InstanceTypeBackend as Types

    # moto's credentials are undone last, or the patch would put them back for good
    with mock_aws(), pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # moto's, of images that it does not know
        patch.setenv("HOME", str(home))  # where `ray up` leaves the private key
        patch.delenv("AWS_ENDPOINT_URL", raising=False)  # where an S3 server of other tests still runs
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "made-up")
        patch.setattr(Types, "instance_types", _types_of_the_file(Types.instance_types))
        cloud = _prepared_account()
        cloud.bootstrapped = _bootstrapped()
        yield cloud


def _types_of_the_file(known: list[Any]) -> list[Any]:
    """Of all that AWS has, what cluster.yaml names: telling of 1,400 types takes moto seconds."""
    nodes = cluster_file()["available_node_types"].values()
    named = {node["node_config"]["InstanceType"] for node in nodes}
    return [one for one in known if one["InstanceType"] in named]


def _prepared_account() -> Cloud:
    import boto3

    iam, ec2 = boto3.client("iam"), boto3.client("ec2", REGION)
    for name, policies in {
        "isoformer-node": ["s3-policy.json", "kms-policy.json"],
        "isoformer-head": ["s3-policy.json", "kms-policy.json", "head-policy.json"],
    }.items():
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=policy_text("ec2-trust-policy.json"))
        for policy in policies:
            iam.put_role_policy(RoleName=name, PolicyName=policy[:-5], PolicyDocument=policy_text(policy))
        iam.create_instance_profile(InstanceProfileName=name)
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = ec2.create_security_group(GroupName="isoformer", Description="isoformer", VpcId=vpc)["GroupId"]
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": USERS_ADDRESS}]}
    inside = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[ssh, inside])
    return Cloud(ec2, group)


def _bootstrapped() -> dict[str, Any]:
    """What `ray up` does before it launches the head: defaults, types' resources, network, key pair."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(cluster_file())
    validate_config(config)
    return bootstrap_aws(AWSNodeProvider.fillout_available_node_types_resources(config))


def policy_actions(name: str) -> set[str]:
    """What a policy allows."""
    allowed = [
        one["Action"] for one in json.loads(policy_text(name))["Statement"] if one["Effect"] == "Allow"
    ]
    return {action for listed in allowed for action in ([listed] if isinstance(listed, str) else listed)}
