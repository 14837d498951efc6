"""Every fault that was made, and what came of it; at the end a report as JSON, of numbers and names alone."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["", "went on", "run again", "refused with a clear error"]


@dataclass(frozen=True)
class Fault:
    """`what`: the process, request or place that was hit. `seconds`: since the verb's process was started.

    `recovery_seconds`: until the verb was done. `error`: the line in which the verb refused, where it did.
    """

    verb: str
    kind: str
    what: str
    seconds: float
    at: float
    outcome: Outcome = ""
    recovery_seconds: float | None = None
    error: str = ""


class Ledger:
    """`masked`: what stands in the place of addresses and folders of one machine."""

    def __init__(self, seed: int) -> None:
        self.seed, self.faults, self.masked = seed, list[Fault](), dict[str, str]()
        self.checks: dict[str, int] = {}

    def add(self, verb: str, kind: str, what: str, *, started_at: float, at: float | None = None) -> None:
        at = time.monotonic() if at is None else at
        self.faults.append(Fault(verb, kind, what, at - started_at, at))

    def settle(self, outcome: Outcome, error: str = "", *, of: Callable[[Fault], bool] | None = None) -> None:
        """What came of those that have no outcome yet, or of some of them."""
        self.faults = [
            replace(one, outcome=outcome, error=error) if not one.outcome and (of is None or of(one)) else one
            for one in self.faults
        ]

    def recovered(self) -> None:
        """The verb is done now."""
        now = time.monotonic()
        self.faults = [
            replace(one, recovery_seconds=now - one.at) if one.recovery_seconds is None else one
            for one in self.faults
        ]

    def counted(self, name: str) -> dict[str, int]:
        """Faults by kind, verb or outcome."""
        return dict(sorted(Counter(str(getattr(one, name)) for one in self.faults).items()))

    def to_json(self) -> dict[str, Any]:
        listed = [{k: _rounded(v) for k, v in asdict(one).items() if k != "at"} for one in self.faults]
        totals = {name: self.counted(name) for name in ("kind", "verb", "outcome")}
        return {
            "seed": self.seed, "faults": len(listed), **totals, "checks": self.checks, "all": listed
        }  # fmt: skip

    def write(self, path: Path) -> None:
        text = json.dumps(self.to_json(), indent=1)
        for found, shown in sorted(self.masked.items(), key=lambda item: -len(item[0])):
            text = text.replace(found, shown)
        path.write_text(text + "\n")


def _rounded(value: Any) -> Any:
    return round(value, 2) if isinstance(value, float) else value
