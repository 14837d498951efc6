"""prepare, embed, train and sweep while everything dies around them: at last as if nothing had happened."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from chaos.ledger import Ledger
from chaos.monkey import Monkey
from chaos.pipeline import VERBS, Peace, Place, require_equal, require_study_as_told, results
from chaos.reader import watched
from chaos.surroundings import Kind, Surroundings, placed

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]

STRIKES: dict[str, Sequence[Kind]] = {
    "prepare": ["driver"] * 2 + ["worker"] * 2 + ["node", "storage server"],
    "embed": ["driver"] * 2 + ["worker"] * 5 + ["node", "head", "storage server"],
    "train": ["driver"] * 2 + ["worker"] * 3 + ["node", "tracking server", "storage server"],
    "sweep": ["driver"] * 2 + ["worker"] * 5 + ["node", "head", "tracking server", "storage server"]
    + ["database"] * 2,
}  # fmt: skip
FAULTY, LATENCY_SECONDS, LATE_SECONDS = 0.06, 0.03, 1.0


@pytest.fixture(scope="module")
def disturbed(around: Surroundings, peace: Peace, sources: dict[str, Any]) -> Place:
    return placed(around, around.s3.root(), "disturbed", sources)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_that_is_disturbed_is_done_at_last(
    verb: str, around: Surroundings, disturbed: Place, peace: Peace, ledger: Ledger
) -> None:
    monkey = Monkey(around, ledger, random.Random(f"{ledger.seed} {verb}"))
    proxy = around.proxy
    proxy.probability, proxy.latency_seconds, proxy.late_seconds = FAULTY, LATENCY_SECONDS, LATE_SECONDS
    try:
        with watched(disturbed.storage, peace.results.objects) as seen:
            monkey.disturb(verb, disturbed, STRIKES[verb], peace.requests[verb])
        assert seen
    finally:
        proxy.probability = proxy.latency_seconds = 0.0
        around.mend(all_of_it=True)


def test_the_results_are_those_of_a_run_in_peace(
    disturbed: Place, peace: Peace, around: Surroundings, ledger: Ledger
) -> None:
    from isoformer.tracking import replay

    left = replay(disturbed.tracking)
    assert left.waiting == 0 and not left.refusals
    found = results(disturbed)
    require_equal(found, peace.results)
    require_study_as_told(disturbed, found)
    ledger.checks |= {
        "objects equal": len(found.objects), "epochs equal": len(found.epochs),
        "trials equal": len(found.trials), "tracked runs equal": len(found.tracked),
        "metric values equal": sum(
            len(points) for run in found.tracked.values() for points in run["metrics"].values()
        ),
    }  # fmt: skip
