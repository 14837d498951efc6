"""Runs last: the faults were many, of every kind, on every verb, and each has an outcome."""

from __future__ import annotations

import pytest

from chaos.ledger import Ledger
from chaos.pipeline import VERBS
from chaos.surroundings import KINDS
from chaos.test_pipeline import STRIKES
from faulty_s3 import FAULTS

pytestmark = pytest.mark.chaos


def test_the_faults_were_many_and_of_all_kinds(ledger: Ledger) -> None:
    kinds, verbs = ledger.counted("kind"), ledger.counted("verb")
    if set(verbs) != set(VERBS) or "clock: wrong by days" not in kinds:
        pytest.skip("counts the faults of the whole suite")
    assert len(ledger.faults) >= 100
    assert sum(kinds.get(kind, 0) for kind in KINDS) == sum(len(strikes) for strikes in STRIKES.values())
    assert sum(count for kind, count in kinds.items() if kind.startswith("s3: ")) >= 60
    assert set(KINDS) <= set(kinds)
    assert len([fault for fault in FAULTS if f"s3: {fault}" in kinds]) >= 8, "drawn at random"
    assert all(one.outcome and one.recovery_seconds is not None for one in ledger.faults)
