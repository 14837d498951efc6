"""Try every door with so many inputs, guided by the coverage of our code, and report what was found.

    python tests/fuzz/campaign.py --inputs 2500 --report campaign.json      # of each door
    python tests/fuzz/campaign.py --door gff3 --inputs 100000 --keep /tmp/finds

Each door runs in a child of its own (a crash of a native library ends that one alone), with atheris and the
changes of `mutation.py`. The report has, a door: inputs, how many were accepted, refused and skipped, the
edges and features that were covered, finds by kind, the slowest input, seconds. With `--door`, a report that
is there is brought up to date. Exit status 1 where anything was found.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz.door import Door, Find
from fuzz.mutation import mutated

LONGEST_BYTES = 60_000
MEMORY_MB = 3000
HANGS_AFTER_SECONDS = 60
GRACE_SECONDS = 120
SHARE_OF_VALID = 0.3
"""Of inputs, made of a valid seed: what grew out of the corpus is seldom a whole document any more."""


def main() -> int:
    options = _options()
    doors = _instrumented_doors()
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() else None
    work = Path(
        tempfile.mkdtemp(prefix="isoformer-fuzz-", dir=place)
    )  # a child's end would clean a context up
    found = [_run_door(doors[name], options, work) for name in options.door or doors]
    shutil.rmtree(work)
    places = {name: place for place, name in enumerate(doors)}
    report = _report(sorted([*_other_doors(options), *found], key=lambda line: places[line["door"]]))
    if options.report:
        Path(options.report).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report["total"]))
    return 1 if report["total"]["finds"] else 0


def _other_doors(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What a report has of doors that are not tried now."""
    if not options.door or not options.report or not Path(options.report).exists():
        return []
    lines = json.loads(Path(options.report).read_text(encoding="utf-8"))["doors"]
    return [line for line in lines if line["door"] not in options.door]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Coverage-guided fuzzing of every door.")
    parser.add_argument("--inputs", type=int, default=2500, help="of each door")
    parser.add_argument("--seconds", type=float, default=600, help="of a door at most")
    parser.add_argument("--door", action="append", help="this one alone; may be repeated")
    parser.add_argument("--report", help="JSON file to write")
    parser.add_argument("--keep", default="", help="folder for the inputs that found something")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def _instrumented_doors() -> dict[str, Door]:
    """Our package alone is instrumented: what the native libraries cover is not seen, and takes long."""
    import atheris

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    with atheris.instrument_imports(include=["isoformer"]):
        from fuzz.doors import DOORS
    return DOORS


def _run_door(door: Door, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """One door in a child, which libFuzzer ends. What the child wrote last stands, though it crashed."""
    folder = work / door.name.replace(" ", "-")
    folder.mkdir()
    keep = Path(options.keep).resolve() / folder.name if options.keep else folder / "finds"
    keep.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _enter_child(folder)
        _fuzz(door, options, keep)
        os._exit(1)  # libFuzzer has ended the process before
    status = _ended(child, options.seconds + GRACE_SECONDS)
    said = (folder / "said.txt").read_text(errors="replace")
    progress = keep / "progress.json"
    found = json.loads(progress.read_text()) if progress.exists() else {"inputs": 0, "finds": {}}
    if status:
        found["finds"]["the process died"] = {"times": 1, "detail": said[-400:]}
    edges, features = map(int, (re.findall(r"cov: (\d+) ft: (\d+)", said) or [("0", "0")])[-1])
    seconds = round(time.monotonic() - began, 1)
    line = {"door": door.name, **found, "edges": edges, "features": features, "seconds": seconds}
    print({key: value for key, value in line.items() if key != "finds"}, list(found["finds"]), flush=True)
    return line


def _enter_child(folder: Path) -> None:
    """In a folder of its own, what it says into a file."""
    os.chdir(folder)
    file = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)


def _ended(child: int, seconds: float) -> int:
    """The exit status of a child, which is ended where it takes longer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _report(found: list[dict[str, Any]]) -> dict[str, Any]:
    summed = {
        name: sum(line.get(name, 0) for line in found)
        for name in ("inputs", "accepted", "refused", "skipped")
    }
    finds = sum(len(line["finds"]) for line in found)
    seconds = round(sum(line["seconds"] for line in found))
    return {"total": {"doors": len(found), **summed, "finds": finds, "seconds": seconds}, "doors": found}


def _fuzz(door: Door, options: argparse.Namespace, keep: Path) -> None:
    import atheris

    corpus = Path("corpus")
    corpus.mkdir()
    for number, seed in enumerate(door.seeds):
        (corpus / f"{number:03d}").write_bytes(seed)
    words = Path("words.txt")
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in door.words if word))
    arguments = [
        sys.argv[0],
        str(corpus),
        f"-runs={options.inputs}",
        f"-max_total_time={round(options.seconds)}",
        f"-dict={words}",
        f"-timeout={HANGS_AFTER_SECONDS}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-max_len={LONGEST_BYTES}",
        f"-seed={options.seed}",
        "-mutate_depth=1",
        "-len_control=0",
        f"-artifact_prefix={keep}/",
    ]

    def changed(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < SHARE_OF_VALID or not data:
            data = chance.choice(door.seeds[: door.valid])
        elif chance.random() < 0.4:
            return atheris.Mutate(data, most)
        return mutated(data, door.words, chance)[:most]

    atheris.Setup(arguments, _target(door, keep, options.inputs), custom_mutator=changed)
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    """As libFuzzer's dictionaries spell bytes."""
    return "".join(f"\\x{byte:02x}" for byte in word)


def _target(door: Door, keep: Path, inputs: int) -> Callable[[bytes], None]:
    """The fuzzer's target: counts what comes of each input, keeps the smallest of every kind of find."""
    counts: Counter[str] = Counter()
    finds: dict[str, dict[str, Any]] = {}
    slowest = written = 0.0
    scratch = Path("scratch").resolve()
    scratch.mkdir()
    door.warm_up(scratch)

    def target(data: bytes) -> None:
        nonlocal slowest, written
        began = time.perf_counter()
        try:
            counts[door.try_one(data, scratch)] += 1
        except Find as find:
            counts["finds"] += 1
            _keep(find, data, finds, keep)
        slowest = max(slowest, time.perf_counter() - began)
        counts["inputs"] += 1
        if counts["inputs"] >= inputs or time.perf_counter() - written > 1:
            written = time.perf_counter()
            described = {name: counts[name] for name in ("inputs", "accepted", "refused", "skipped")}
            line = {**described, "slowest_seconds": round(slowest, 2), "finds": finds}
            (keep / "progress.json").write_text(json.dumps(line))

    return target


def _keep(find: Find, data: bytes, finds: dict[str, dict[str, Any]], keep: Path) -> None:
    known = finds.setdefault(find.kind, {"times": 0, "bytes": len(data) + 1})
    known["times"] += 1
    if len(data) < known["bytes"]:
        file = keep / re.sub(r"\W+", "-", find.kind)[:80]
        file.write_bytes(data)
        known.update(bytes=len(data), detail=find.detail[:300])


if __name__ == "__main__":
    sys.exit(main())
