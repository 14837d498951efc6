"""What the package stands on: licences that allow it, a bill of materials, an audit that tells the truth."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "platform" / "tools" / "supply_chain.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("supply_chain", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_that_the_package_needs_is_under_a_licence_of_the_gpls_kind(tool: ModuleType) -> None:
    needed = tool.runtime()
    assert {"ray", "torch", "mlflow", "pysam", "psycopg", "onnx"} <= set(needed) and len(needed) > 100
    assert "pytest" not in needed, "tools are not shipped"
    assert tool.copyleft(needed.values()) == []


class Stated:
    """A distribution with this metadata."""

    def __init__(self, **fields: Any) -> None:
        self.metadata = self
        self.fields = {"Name": "x", **{name.replace("_", "-"): value for name, value in fields.items()}}

    def get(self, name: str) -> Any:
        return self.fields.get(name)

    def get_all(self, name: str) -> Any:
        return self.fields.get(name)

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]


@pytest.mark.parametrize(
    ("fields", "is_refused"),
    [
        ({"License_Expression": "AGPL-3.0-or-later"}, True),
        ({"License_Expression": "GPL-2.0-only"}, True),
        ({"Classifier": ["License :: OSI Approved :: GNU General Public License v3 (GPLv3)"]}, True),
        ({"License": "GNU Affero General Public License"}, True),
        ({"License_Expression": "MIT OR GPL-2.0-only"}, True),
        ({"License_Expression": "LGPL-3.0-only"}, False),
        ({"License": "GNU Lesser General Public License v3"}, False),
        ({"License_Expression": "Apache-2.0"}, False),
        ({}, False),
    ],
)
def test_which_licences_are_refused(tool: ModuleType, fields: dict[str, Any], is_refused: bool) -> None:
    assert bool(tool.copyleft([Stated(**fields)])) == is_refused


def item(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "version": "1", "vulns": [], **more}


KNOWN = {"id": "PYSEC-2026-1", "fix_versions": ["2"], "aliases": [], "description": ""}


@pytest.mark.parametrize(
    ("items", "status", "said"),
    [
        ([item("a"), item("B_c")], 0, "nothing is known against 2 pins"),
        ([item("a", vulns=[KNOWN]), item("b-c")], 1, "a 1: PYSEC-2026-1, mended in 2"),
        ([item("a"), {"name": "b-c", "skip_reason": "not found"}], 3, "not audited: 1 of 2 pins, as b-c"),
        ([item("a", vulns=[KNOWN]), {"name": "b-c", "skip_reason": "not found"}], 1, "not audited: 1 of 2"),
        ([], 3, "not audited: 2 of 2 pins"),
    ],
)
def test_an_audit_that_could_not_ask_is_no_clean_one(
    tool: ModuleType, items: list[dict[str, Any]], status: int, said: str
) -> None:
    found, lines = tool.verdict(
        {"dependencies": items}, tool.pins("a==1\nB.c[x]==2 ; python_version > '3'\n")
    )
    assert found == status and said in "\n".join(lines)


def test_without_a_network_the_audit_says_so(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip-audit itself fails at its first request where a proxy refuses every connection."""
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, SCRIPT, "audit"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 3 and "not audited" in done.stderr, done.stderr


def test_every_pin_is_read(tool: ModuleType) -> None:
    lock = (ROOT / "platform" / "requirements.lock").read_text()
    assert len(tool.pins(lock)) == sum("==" in line for line in lock.splitlines()) > 200


@pytest.mark.long
def test_the_bill_of_materials(tool: ModuleType, tmp_path: Path) -> None:
    made = [tmp_path / "one.json", tmp_path / "two.json"]
    for file in made:
        subprocess.run([sys.executable, SCRIPT, "sbom", file], check=True, timeout=200)
    assert made[0].read_bytes() == made[1].read_bytes()
    text = made[0].read_text()
    assert "file:" not in text and str(ROOT) not in text and sys.prefix not in text
    bill = json.loads(text)
    assert bill["bomFormat"] == "CycloneDX" and bill["metadata"]["component"]["name"] == "isoformer"
    names = {component["name"].lower() for component in bill["components"]}
    assert {"ray", "torch", "mlflow"} <= names and "pytest" not in names
    assert all(component["version"] and component["purl"] for component in bill["components"])
    known = {component["bom-ref"] for component in bill["components"]} | {
        bill["metadata"]["component"]["bom-ref"]
    }
    assert {ref for node in bill["dependencies"] for ref in node.get("dependsOn", [])} <= known
