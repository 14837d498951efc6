"""The layout keeps its promises: the source root shadows nothing, the top level is small, jobs are thin."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))
PRINT_PLATFORM = "import platform; print(platform.__file__); platform.machine()"


def test_platform_is_the_standard_library_in_pytest() -> None:
    import platform

    assert Path(platform.__file__).parent == STANDARD_LIBRARY


@pytest.mark.parametrize("python_path", [None, "platform", "."])
def test_platform_is_the_standard_library_from_the_root(
    python_path: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if python_path is not None:
        monkeypatch.setenv("PYTHONPATH", python_path)
    run = subprocess.run(
        [sys.executable, "-c", PRINT_PLATFORM], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert Path(run.stdout.strip()).parent == STANDARD_LIBRARY


def test_platform_is_the_standard_library_in_a_ray_worker(ray_local: None) -> None:
    import ray

    @ray.remote
    def platform_file() -> str:
        import platform

        return str(platform.__file__)

    assert Path(ray.get(platform_file.remote())).parent == STANDARD_LIBRARY


def test_source_root_is_not_a_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()


def test_top_level_holds_only_what_the_layout_names() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    top = {path.split("/")[0] for path in tracked if path and not path.startswith(".")}
    assert top == {
        "CHANGELOG.md", "LICENSE", "Makefile", "README.md", "cluster.yaml", "dashboards", "jobs", "platform",
        "pyproject.toml", "tests",
    }  # fmt: skip


def test_jobs_are_thin_and_named_like_no_standard_module() -> None:
    jobs = sorted((ROOT / "jobs").glob("*.py"))
    assert jobs
    for job in jobs:
        assert len(job.read_text().splitlines()) < 60, job
        assert job.stem not in sys.stdlib_module_names, job
