"""The README's recipe for a new encoder, run as it stands there: its code keeps the contract."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE, TEST = "platform/isoformer/encoders/hydropathy.py", "tests/encoders/test_hydropathy.py"
CONFTEST = """
import isoformer.encoders
from isoformer.encoders.registry import FAMILIES

isoformer.encoders.__path__.append({folder!r})
FAMILIES.update({{{entry}}})
"""


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    """The recipe's blocks of code: the encoder, its entry, its test."""
    recipe = (ROOT / "README.md").read_text().partition("### Add an encoder\n")[2].partition("\n#")[0]
    return re.findall(r"```python\n(.*?)```", recipe, re.DOTALL)


def test_it_takes_less_than_40_lines(blocks: list[str]) -> None:
    assert len(blocks) == 3
    assert len([line for line in "".join(blocks).splitlines() if line]) < 40


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
@pytest.mark.parametrize(("index", "path"), [(0, MODULE), (2, TEST)])
def test_it_passes_the_projects_own_checks(
    blocks: list[str], index: int, path: str, command: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--stdin-filename", path, "-"],
        cwd=ROOT,
        input=blocks[index],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_keeps_the_contract(blocks: list[str], tmp_path: Path) -> None:
    encoder, entry, test = blocks
    (tmp_path / Path(MODULE).name).write_text(encoder)
    (tmp_path / Path(TEST).name).write_text(test)
    (tmp_path / "conftest.py").write_text(CONFTEST.format(folder=str(tmp_path), entry=textwrap.dedent(entry)))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-c",
            ROOT / "pyproject.toml",
            "--rootdir",
            tmp_path,
            tmp_path,
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^1\d passed", done.stdout, re.MULTILINE), done.stdout
