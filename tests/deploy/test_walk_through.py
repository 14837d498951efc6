"""platform/docs/cloud.md: its command lines are ones that their programs take, its files are there."""

from __future__ import annotations

import re
from typing import Any

import boto3
import click
import pytest
import yaml
from botocore import xform_name

from deploy.command_lines import command_lines, require_accepted
from deploy.made_cloud import DEPLOY, REGION, ROOT
from isoformer.config import build
from isoformer.settings import Settings

TEXT = (ROOT / "platform/docs/cloud.md").read_text()
SHELL = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL))
OF_THE_AWS_COMMAND = {"query", "output", "region"}


def lines(program: str) -> list[Any]:
    found = command_lines(SHELL, program)
    assert found
    return [pytest.param(line, id=" ".join(line[:2])) for line in found]


@pytest.mark.parametrize("line", lines("isoformer"))
def test_isoformer_takes_its_lines(line: list[str]) -> None:
    require_accepted(line)


@pytest.mark.parametrize("line", lines("ray"))
def test_ray_takes_its_lines(line: list[str]) -> None:
    from ray.scripts.scripts import cli

    require_accepted(line, cli)


@pytest.mark.parametrize("line", lines("aws"))
def test_aws_has_the_operation_and_takes_its_parameters(line: list[str]) -> None:
    service, operation, *options = line
    model = boto3.client(service.replace("s3api", "s3"), REGION).meta.service_model
    (name,) = [one for one in model.operation_names if xform_name(one, "-") == operation]
    shape = model.operation_model(name).input_shape
    known = {xform_name(member, "-") for member in shape.members}
    required = {xform_name(member, "-") for member in shape.required_members}
    given = {option[2:] for option in options if option.startswith("--")} - OF_THE_AWS_COMMAND
    assert required <= given <= known


def test_a_line_that_is_wrong_is_found() -> None:
    with pytest.raises(click.UsageError):
        require_accepted(["submit", "embed", "--budget-minutes", "8"])


def test_files_and_sections_that_it_names_are_there() -> None:
    policies = set(re.findall(r"filled ([\w-]+\.json)", SHELL))
    assert policies == {path.name for path in DEPLOY.glob("*-policy.json")} - {"ec2-trust-policy.json"}
    for path in re.findall(r"platform/deploy/[\w./-]+\w", TEXT):
        assert (ROOT / path).exists(), path
    roles = set(re.findall(r"isoformer-(?:node|head)", SHELL))
    assert roles == set(re.findall(r"isoformer-(?:node|head)", (ROOT / "cluster.yaml").read_text()))


def test_its_configuration_is_taken() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    settings = build(Settings, yaml.safe_load(text))
    assert settings.root.startswith("s3://")
    assert settings.tracking.is_server
