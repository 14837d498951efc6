"""The README cannot rot: what it names exists, and its configuration is one that the platform takes."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from isoformer.cli import commands
from isoformer.config import build
from isoformer.embeddings.config import EncoderJob
from isoformer.encoders.registry import encoder_names
from isoformer.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_its_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)(?=`|$)", README, re.MULTILINE))
    assert {"demo", "test", "install"} <= named <= targets


def test_its_files_exist() -> None:
    named = set(re.findall(r"`((?:platform|jobs|dashboards|tests)/[\w./-]+)`", README))
    assert len(named) >= 6
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_its_verbs_and_encoders_are_all_there_are() -> None:
    assert set(re.findall(r"\| `isoformer ([a-z]+)", README)) == set(commands.commands)
    assert [name for name in encoder_names() if name not in README and "composition" not in name] == []


def test_its_configurations_are_taken() -> None:
    first, *others = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    settings = build(Settings, yaml.safe_load(first))
    assert settings.train_config().keys.keys() == {"dna", "rna", "protein"}
    assert [build(Settings, yaml.safe_load(other)) for other in others]


def test_its_encoders_are_taken() -> None:
    entries = [yaml.safe_load(entry) for entry in re.findall(r"`(\{name: [^`]+\})`", README)]
    assert len(entries) >= 4
    assert [EncoderJob(**entry).name for entry in entries]
