"""The KubeRay files keep what the walk-through promises, and the schemas of Kubernetes and KubeRay take them.

KubeRay's own schemas are published only with its source: KUBERAY_CRDS names a folder that holds its
ray.io_rayclusters.yaml and ray.io_rayjobs.yaml (ray-operator/config/crd/bases there).
"""

from __future__ import annotations

import os
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from deploy.command_lines import command_lines, require_accepted
from deploy.made_cloud import DEPLOY
from isoformer import __version__

FOLDER = DEPLOY / "kuberay"
KUBERNETES = "1.35"


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return read("raycluster")["spec"]


@pytest.fixture(scope="module")
def pods(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every pod's specification by its role."""
    workers = {group["groupName"]: group["template"]["spec"] for group in cluster["workerGroupSpecs"]}
    submitter = read("rayjob")["spec"]["submitterPodTemplate"]["spec"]
    return {"head": cluster["headGroupSpec"]["template"]["spec"], "submitter": submitter, **workers}


def test_a_jobs_cluster_is_the_one_that_stays(cluster: dict[str, Any]) -> None:
    assert read("rayjob")["spec"]["rayClusterSpec"] == cluster


def test_it_asks_for_a_token_and_scales_from_zero(cluster: dict[str, Any]) -> None:
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == version("ray")
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert [group["minReplicas"] for group in cluster["workerGroupSpecs"]] == [0, 0]
    assert [group["replicas"] for group in cluster["workerGroupSpecs"]] == [0, 0]


def test_no_pod_runs_as_root_or_may_become_it(pods: dict[str, Any], cluster: dict[str, Any]) -> None:
    for role, pod in pods.items():
        assert pod["securityContext"]["runAsNonRoot"] is True, role
        assert pod["securityContext"]["runAsUser"] != 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    contexts = [one["securityContext"] for pod in pods.values() for one in pod["containers"]]
    contexts.append(cluster["autoscalerOptions"]["securityContext"])
    assert len(contexts) == 5
    for context in contexts:
        assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_images_are_pinned_and_resources_limited(pods: dict[str, Any]) -> None:
    for role, pod in pods.items():
        for container in pod["containers"]:
            kind = "gpu" if role == "gpu" else "cpu"
            assert re.fullmatch(rf"REGISTRY/isoformer:{re.escape(__version__)}-{kind}", container["image"])
            limits = container["resources"]["limits"]
            assert {"cpu", "memory"} <= limits.keys()
            assert container["resources"]["requests"] == limits, "a pod that may be pushed out for its memory"
    has_gpu = {role for role, pod in pods.items() if "nvidia.com/gpu" in str(pod["containers"])}
    assert has_gpu == {"gpu"}


def test_the_head_is_on_demand_and_workers_are_spot(pods: dict[str, Any]) -> None:
    kinds = {
        role: pods[role]["nodeSelector"]["eks.amazonaws.com/capacityType"]
        for role in pods.keys() - {"submitter"}
    }
    assert kinds == {"head": "ON_DEMAND", "cpu": "SPOT", "gpu": "SPOT"}


def test_rights_are_the_service_accounts_and_secrets_are_kubernetes(pods: dict[str, Any]) -> None:
    account = read("serviceaccount")
    assert re.fullmatch(r"arn:aws:iam::ACCOUNT:role/[\w-]+", *account["metadata"]["annotations"].values())
    assert {pod["serviceAccountName"] for pod in pods.values()} == {account["metadata"]["name"]}
    for role in pods.keys() - {"head"}:  # the autoscaler beside the head asks Kubernetes for pods
        assert pods[role]["automountServiceAccountToken"] is False
    for role in pods.keys() - {"submitter"}:
        (container,) = pods[role]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "isoformer-credentials"}}]
        named = {variable["name"] for variable in container["env"]}
        assert named == {"RAY_USAGE_STATS_ENABLED"}, "a value in the file may be a secret"


def test_a_job_ends_its_cluster_and_runs_a_verb() -> None:
    job = read("rayjob")["spec"]
    assert job["shutdownAfterJobFinishes"] is True
    assert job["ttlSecondsAfterFinished"] <= 3600
    assert job["activeDeadlineSeconds"] <= 24 * 3600
    (line,) = command_lines(job["entrypoint"])
    require_accepted(line)


def test_kubernetes_takes_every_pod_and_the_account(pods: dict[str, Any]) -> None:
    kubernetes_validate.validate(read("serviceaccount"), KUBERNETES, strict=True)
    for role, spec in pods.items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": role}, "spec": spec}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_kubernetes_would_refuse_a_field_that_is_misspelt(pods: dict[str, Any]) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "x"},
        "spec": {**pods["cpu"], "tolerance": []},
    }
    with pytest.raises(kubernetes_validate.ValidationError, match="tolerance"):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.skipif(
    "KUBERAY_CRDS" not in os.environ, reason="KUBERAY_CRDS names no folder with KubeRay's schemas"
)
@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_kuberay_takes_it_and_no_field_that_it_does_not_know(name: str) -> None:
    file = Path(os.environ["KUBERAY_CRDS"]) / f"ray.io_{name}s.yaml"
    versions = yaml.load(file.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = [one["schema"]["openAPIV3Schema"] for one in versions if one["name"] == "v1"]
    validator = jsonschema.Draft202012Validator(_strict(schema))
    assert [error.message for error in validator.iter_errors(read(name))] == []
    unknown = {**read(name)["spec"], "minReplica": 0}
    assert not validator.is_valid({**read(name), "spec": unknown})


def _strict(schema: Any) -> Any:
    """Kubernetes' dialect as plain JSON Schema that refuses unknown fields, as the API server does."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string") is True:
        return {"type": ["integer", "string"]}
    is_closed = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if is_closed and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    return strict
