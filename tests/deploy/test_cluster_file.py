"""cluster.yaml: Ray and AWS take it, it holds no secret, asks for a token everywhere and opens nothing."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.validate import ParamValidator

from deploy.made_cloud import REGION, ROOT, USERS_ADDRESS, Cloud, cluster_file, policy_text

ROLES = ("isoformer-node", "isoformer-head")
WORKERS = ("cpu_worker", "gpu_worker")


@pytest.fixture(scope="module")
def node_types() -> dict[str, Any]:
    return cluster_file()["available_node_types"]


def test_ec2_takes_every_node(node_types: dict[str, Any]) -> None:
    client = boto3.client("ec2", REGION, aws_access_key_id="x", aws_secret_access_key="x")
    shape = client.meta.service_model.operation_model("RunInstances").input_shape
    for name, node in node_types.items():
        request = {**node["node_config"], "MinCount": 1, "MaxCount": 1}
        report = ParamValidator().validate(request, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"


def test_every_node_has_an_encrypted_disk_a_role_and_metadata_by_token(node_types: dict[str, Any]) -> None:
    for name, node in node_types.items():
        config = node["node_config"]
        assert all(disk["Ebs"]["Encrypted"] is True for disk in config["BlockDeviceMappings"]), name
        assert config["MetadataOptions"]["HttpTokens"] == "required"
        assert config["IamInstanceProfile"] == {
            "Name": "isoformer-head" if name == "head" else "isoformer-node"
        }
        assert config["ImageId"], "Ray's own default image is of 2018"


def test_the_head_is_on_demand_and_does_no_work_and_workers_are_spot_from_zero(
    node_types: dict[str, Any],
) -> None:
    assert node_types["head"]["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in node_types["head"]["node_config"]
    for name in WORKERS:
        assert node_types[name]["min_workers"] == 0
        assert node_types[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    most = sum(node_types[name]["max_workers"] for name in WORKERS)
    assert cluster_file()["max_workers"] == most


def test_ray_finds_what_the_instance_types_have(cloud: Cloud) -> None:
    resources = {name: node["resources"] for name, node in cloud.bootstrapped["available_node_types"].items()}
    assert resources["head"] == {"CPU": 0}
    assert resources["cpu_worker"]["CPU"] == 16
    assert "GPU" not in resources["cpu_worker"]
    assert (resources["gpu_worker"]["CPU"], resources["gpu_worker"]["GPU"]) == (16, 1)


def test_ray_up_keeps_the_security_group_and_the_roles(cloud: Cloud) -> None:
    nodes = cloud.bootstrapped["available_node_types"]
    assert {tuple(node["node_config"]["SecurityGroupIds"]) for node in nodes.values()} == {(cloud.group,)}
    assert cloud.bootstrapped["head_node"] == {}, "Ray made a role of its own, with all rights"
    rules = cloud.ec2.describe_security_groups(GroupIds=[cloud.group])["SecurityGroups"][0]["IpPermissions"]
    open_to = [range_["CidrIp"] for rule in rules for range_ in rule["IpRanges"]]
    assert open_to == [USERS_ADDRESS]
    key = Path(cloud.bootstrapped["auth"]["ssh_private_key"])
    assert key.stat().st_mode & 0o077 == 0


def test_iam_takes_every_policy(cloud: Cloud) -> None:
    """The account was made with them: a policy that IAM refuses would have ended that."""
    iam = boto3.client("iam")
    names = {role: iam.list_role_policies(RoleName=role)["PolicyNames"] for role in ROLES}
    assert {role: sorted(listed) for role, listed in names.items()} == {
        "isoformer-node": ["kms-policy", "s3-policy"],
        "isoformer-head": ["head-policy", "kms-policy", "s3-policy"],
    }
    broken = policy_text("head-policy.json").replace('"Effect": "Allow"', '"Effect": "Perhaps"', 1)
    with pytest.raises(iam.exceptions.MalformedPolicyDocumentException):
        iam.put_role_policy(RoleName=ROLES[0], PolicyName="broken", PolicyDocument=broken)


@pytest.mark.parametrize("kind", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_starts_with_the_token(kind: str) -> None:
    *_, start = cluster_file()[kind]
    before, _, command = start.partition("ray start")
    assert "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token" in before
    assert "unset OMP_NUM_THREADS" in before
    assert "ulimit -n 65536" in before
    assert "--metrics-export-port=8080" in command


def test_the_dashboard_listens_on_loopback_and_the_autoscaler_runs() -> None:
    head = cluster_file()["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head


def test_secrets_come_from_files_of_the_users_and_are_closed_to_others() -> None:
    cluster = cluster_file()
    text = (ROOT / "cluster.yaml").read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|(?i:password|secret_access_key|auth_token)\s*[:=]\s*[^~\s]", text)
    mounts = {local for local in cluster["file_mounts"].values() if local != "."}
    assert mounts == {"~/.ray/auth_token", "~/isoformer.env"}
    assert cluster["setup_commands"][0] == "chmod 600 ~/.ray/auth_token ~/isoformer.env"


def test_the_example_of_the_environment_file_holds_no_secret() -> None:
    lines = (ROOT / "platform/deploy/isoformer.env.example").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert {name for name, value in settings.items() if value} == {"AWS_DEFAULT_REGION"}


def test_the_set_up_takes_every_version_from_the_lock() -> None:
    """What `-c platform/requirements.lock -e .[databases]` installs is pinned there by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["databases"]
    names = {re.split(r"[\[<>=~! ]", requirement)[0].lower() for requirement in wanted}
    lock = (ROOT / "platform/requirements.lock").read_text().lower()
    pinned = set(re.findall(r"^([a-z0-9._-]+)(?:\[.*\])?==", lock, re.MULTILINE))
    assert names <= pinned
    install = cluster_file()["setup_commands"][2]
    assert "-c platform/requirements.lock -e '.[databases,gpu]'" in install


def test_ray_adds_no_command_of_its_own_to_the_set_up(cloud: Cloud) -> None:
    """Ray's default for the head calls a pip that is not there."""
    ours = cluster_file()["setup_commands"]
    assert cloud.bootstrapped["head_setup_commands"] == ours
    assert cloud.bootstrapped["worker_setup_commands"] == ours
