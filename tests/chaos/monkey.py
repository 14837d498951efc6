"""Run a verb again and again with the same command while things die around it, until it is done."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from chaos.attempts import ATTEMPT_SECONDS, Attempt, attempted
from chaos.ledger import Ledger
from chaos.pipeline import VERBS, Place
from chaos.surroundings import Kind, Surroundings

STARTING: Final = 0.25
"""Share of the kills of drivers that hit them while they start, before they ask for anything."""
SERVICES: Final = ("database", "storage server", "tracking server")
"""What a verb may refuse to go on without."""
ENDS_THE_ATTEMPT: Final = ("driver", "head")


class Monkey:
    """Draws the moments. A verb's progress is told by its requests to the storage, so that the moments fall
    evenly over its work on a fast machine and on a slow one.
    """

    def __init__(self, around: Surroundings, ledger: Ledger, draw: random.Random) -> None:
        self.around, self.ledger, self.random = around, ledger, draw

    def disturb(self, verb: str, place: Place, strikes: Sequence[Kind], requests: int) -> None:
        """All the strikes, in a random order, spread over about so many requests; then let it be done."""
        drawn = deque(self.random.sample(strikes, len(strikes)))
        gap = max(1, requests // (len(drawn) + 1))
        for _ in range(len(strikes) + 4):
            seen = len(self.around.proxy.log)
            started_at = time.monotonic()
            command = ["--config", str(place.settings), *VERBS[verb]]
            with attempted(verb, command, self.around.folder, self.around.environment()) as attempt:
                ended_by = self._watched(attempt, drawn, gap)
            for one in self.around.proxy.log[seen:]:
                what = one.request.partition("?")[0]
                self.ledger.add(verb, f"s3: {one.fault}", what, started_at=started_at, at=one.at)
            if ended_by is None and attempt.process.returncode == 0:
                self.ledger.settle("went on")
                self.ledger.recovered()
                self.around.mend(all_of_it=True)
                assert not drawn, f"{verb} was done before {list(drawn)}"
                return
            self._settle(attempt, ended_by)
        raise AssertionError(f"{verb} is never done: {attempt.tail()}")

    def _watched(self, attempt: Attempt, drawn: deque[Kind], gap: int) -> Kind | None:
        """The strike that ended the attempt, if one did."""
        begun, goal = time.monotonic(), self._goal(drawn, gap)
        while attempt.is_running:
            self.around.mend()
            is_due = self.around.proxy.requests >= goal or goal < 0
            if goal < 0:
                time.sleep(self.random.uniform(0, 6))
            if drawn and is_due and attempt.is_running:
                kind = drawn[0]
                what = self.around.strike(kind, attempt)
                if what is None:  # none there now: another first, or the verb is done before they all were
                    drawn.rotate(-1)
                else:
                    drawn.popleft()
                    self.ledger.add(attempt.verb, kind, what, started_at=attempt.started_at)
                    if kind in ENDS_THE_ATTEMPT:
                        return kind
                    goal = self._goal(drawn, gap)
            assert time.monotonic() - begun < ATTEMPT_SECONDS, f"stuck: {attempt.tail()}"
            time.sleep(0.02)
        return None

    def _goal(self, drawn: deque[Kind], gap: int) -> int:
        """How many requests there are to be; -1: none, at some instant of the start."""
        if drawn and drawn[0] == "driver" and self.random.random() < STARTING:
            return -1
        return self.around.proxy.requests + self.random.randint(1, gap)

    def _settle(self, attempt: Attempt, ended_by: Kind | None) -> None:
        if ended_by is not None:
            self.ledger.settle("run again", of=lambda one: one.kind == ended_by)
            self.ledger.settle("went on")
            return
        error = attempt.error()
        if any(one.kind in SERVICES and not one.outcome for one in self.ledger.faults):
            self.ledger.settle("refused with a clear error", error, of=lambda one: one.kind in SERVICES)
            self.ledger.settle("went on")
            return
        self.ledger.settle("refused with a clear error", error)
