"""What the package stands on: known vulnerabilities, a bill of materials, licences (make audit, make sbom).

    supply_chain.py audit        0: nothing known against any pin; 1: something is; 3: it could not be asked
    supply_chain.py sbom FILE    CycloneDX JSON of what the package needs to run; the same bytes every time
    supply_chain.py licences     name, version and licence of each; 1 where one is of the GPL's kind

`audit` asks about every pin of the lock, the tools' too; the others look at what is installed here and needed
to run: the dependencies and the extras gpu, databases and benchmark.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).resolve().parents[2]
LOCK: Final = ROOT / "platform" / "requirements.lock"
EXTRAS: Final = ("gpu", "databases", "benchmark")
CLEAN, VULNERABLE, NOT_ASKED = 0, 1, 3
_COPYLEFT: Final = re.compile(
    r"\b(A?GPL|GNU (Affero )?General Public|SSPL|BUSL|Commons Clause)", re.IGNORECASE
)
_LESSER: Final = re.compile(r"\b(LGPL|GNU (Library or )?Lesser General Public)", re.IGNORECASE)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("audit")
    commands.add_parser("licences")
    commands.add_parser("sbom").add_argument("file", type=Path)
    asked = parser.parse_args()
    if asked.command == "audit":
        return audit()
    return write_sbom(asked.file) if asked.command == "sbom" else licences()


def audit() -> int:
    """Ask the advisory database through pip-audit, which calls a pin that it could not look up no failure."""
    command = [
        "pip-audit",
        "--requirement",
        str(LOCK),
        "--no-deps",
        "--disable-pip",
        "--progress-spinner=off",
    ]
    done = subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:], "--format=json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        report = json.loads(done.stdout)
    except ValueError:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        print(f"not audited: pip-audit could not run: {lines[-1][:300]}", file=sys.stderr)
        return NOT_ASKED
    status, said = verdict(report, pins(LOCK.read_text()))
    print("\n".join(said), file=sys.stderr if status else sys.stdout)
    return status


def pins(lock: str) -> set[str]:
    """Names in a lock."""
    lines = (line.split("==")[0].split("[")[0].strip() for line in lock.splitlines() if "==" in line)
    return {canonicalize_name(line) for line in lines if not line.startswith("#")}


def verdict(report: Mapping[str, Any], wanted: set[str]) -> tuple[int, list[str]]:
    """Exit status and what to say. One known vulnerability outweighs what could not be asked."""
    items = report.get("dependencies", [])
    found = [
        f"{item['name']} {item['version']}: {known['id']}, mended in "
        + (", ".join(known["fix_versions"]) or "no version")
        for item in items
        for known in item.get("vulns", [])
    ]
    asked = {canonicalize_name(item["name"]) for item in items if "skip_reason" not in item}
    missing = sorted(wanted - asked)
    if missing:
        found.append(
            f"not audited: {len(missing)} of {len(wanted)} pins, as {', '.join(missing[:5])}: the advisory "
            "database could not be asked about them; try again where it can be reached"
        )
    if any(item.get("vulns") for item in items):
        return VULNERABLE, found
    return (NOT_ASKED, found) if missing else (CLEAN, [f"nothing is known against {len(asked)} pins"])


def runtime() -> dict[str, Distribution]:
    """By name: the package and all that it needs to run, as installed here."""
    found: dict[str, Distribution] = {}
    waiting = [("isoformer", extra) for extra in ("", *EXTRAS)]
    seen: set[tuple[str, str]] = set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # of an extra that is not installed, or another platform's
            continue
        for text in found[name].requires or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(needed.name), more) for more in ("", *needed.extras)]
    return found


def write_sbom(file: Path) -> int:
    """CycloneDX's own tool lists the environment; kept is what the package needs to run, and no path here."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tool = Path(sys.executable).parent / "cyclonedx-py"
    command = [str(tool), "environment", "--output-reproducible", "--pyproject", str(ROOT / "pyproject.toml")]
    made = subprocess.run([*command, sys.executable], capture_output=True, text=True, check=True)
    file.write_text(json.dumps(narrowed(json.loads(made.stdout), set(runtime())), indent=1) + "\n")
    print(f"{file}: {len(json.loads(file.read_text())['components'])} components")
    return 0


def narrowed(bill: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """The bill of these components alone, without references to files."""
    kept = [item for item in bill["components"] if canonicalize_name(item["name"]) in names - {"isoformer"}]
    for item in [*kept, bill["metadata"]["component"]]:
        links = [one for one in item.get("externalReferences", []) if not one["url"].startswith("file:")]
        item.pop("externalReferences", None)
        item |= {"externalReferences": links} if links else {}
    known = {item["bom-ref"] for item in kept} | {bill["metadata"]["component"]["bom-ref"]}
    graph = [
        {
            **node,
            **(
                {"dependsOn": [ref for ref in node["dependsOn"] if ref in known]}
                if "dependsOn" in node
                else {}
            ),
        }
        for node in bill.get("dependencies", [])
        if node["ref"] in known
    ]
    return {**bill, "components": kept, "dependencies": graph}


def licences() -> int:
    """A line each; what may not be combined with a permissive licence is refused."""
    installed = runtime()
    for name, found in sorted(installed.items()):
        print(f"{name} {found.version}: {licence_of(found)}")
    bad = copyleft(installed.values())
    for line in bad:
        print(f"not allowed: {line}", file=sys.stderr)
    return 1 if bad else 0


def licence_of(found: Distribution) -> str:
    """What a distribution says of itself, from the newest field that it fills in."""
    stated = found.metadata.get("License-Expression")
    classified = [
        text.rpartition(" :: ")[2]
        for text in found.metadata.get_all("Classifier") or []
        if text.startswith("License :: ")
    ]
    text = stated or "; ".join(classified) or (found.metadata.get("License") or "").strip().split("\n")[0]
    return text or "not stated"


def copyleft(distributions: Iterable[Distribution]) -> list[str]:
    """Those under the GPL, the AGPL and their likes; the lesser GPL allows what we do: to import it."""
    stated = [(found.metadata["Name"], licence_of(found)) for found in distributions]
    return [f"{name}: {text}" for name, text in stated if _COPYLEFT.search(_LESSER.sub("", text))]


if __name__ == "__main__":
    sys.exit(main())
