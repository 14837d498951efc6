"""When a trial is not worth going on with: rules over its curve and those of earlier trials.

A curve is a score an epoch: what the model that the fit would keep then has. The rules are functions of
curves alone and keep no state, so a resumed sweep stops what an undisturbed one stops.

asha       at each rung (grace, grace·η, grace·η², … epochs) goes on where the score is among the best 1/η of
           those that came to the rung (Li et al. 2020, "A system for massively parallel hyperparameter
           tuning"; the cutoff is the percentile that Ray Tune's ASHAScheduler takes)
hyperband  asha in brackets whose first rungs lie at grace, grace·η, …; a trial's bracket follows from its
           number, and it is compared within it (Li et al. 2018)
median     stops where the best score so far is below the median of the complete trials at that epoch
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from isoformer.sweep.config import Scheduler, SweepConfig

Curve = Mapping[int, float]
MEDIAN_NEEDS: Final = 5
"""Complete trials before the median says anything, as Optuna's MedianPruner has it."""
GOLDEN: Final = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Peer:
    """An earlier trial that has ended."""

    number: int
    curve: Curve
    is_complete: bool


@dataclass(frozen=True)
class StoppingRule:
    """`epochs` a trial has at most; epochs count from 0 in curves, and from 1 in rungs."""

    scheduler: Scheduler
    epochs: int
    grace_epochs: int
    reduction: int

    @classmethod
    def of(cls, config: SweepConfig, epochs: int, *, is_stoppable: bool = True) -> StoppingRule:
        """The rule of a sweep; none where a trial has no score to be compared by before its end."""
        default: Scheduler = "asha" if config.cost is None and is_stoppable else "none"
        return cls(config.scheduler or default, epochs, config.grace_epochs, config.reduction)

    def stops(self, number: int, curve: Curve, peers: Sequence[Peer]) -> bool:
        """Whether trial `number` ends at the newest epoch of `curve`, which is not its last."""
        epoch = max(curve)
        if self.scheduler in ("none", "pbt") or epoch + 1 >= self.epochs:
            return False
        if self.scheduler == "median":
            return self._is_below_median(curve, epoch, peers)
        bracket = self._bracket(number)
        if epoch + 1 not in self._rungs(bracket):
            return False
        at_rung = [p.curve[epoch] for p in peers if epoch in p.curve and self._bracket(p.number) == bracket]
        if not at_rung:
            return False
        return curve[epoch] < float(np.nanpercentile(at_rung, (1 - 1 / self.reduction) * 100))

    def _rungs(self, bracket: int) -> list[int]:
        """Epochs after which a bracket's trials are compared."""
        first, rungs = self.grace_epochs * self.reduction**bracket, []
        while first < self.epochs:
            rungs.append(first)
            first *= self.reduction
        return rungs

    def _bracket(self, number: int) -> int:
        """Spread evenly over the trials' numbers in the shares that Hyperband gives its brackets."""
        if self.scheduler != "hyperband":
            return 0
        brackets = max(1, len(self._rungs(0)))
        shares = [
            math.ceil(brackets * self.reduction ** (brackets - 1 - s) / (brackets - s))
            for s in range(brackets)
        ]
        place = (number * GOLDEN) % 1 * sum(shares)
        return int(np.searchsorted(np.cumsum(shares), place, side="right"))

    def _is_below_median(self, curve: Curve, epoch: int, peers: Sequence[Peer]) -> bool:
        complete = [peer.curve for peer in peers if peer.is_complete]
        if epoch + 1 <= self.grace_epochs or len(complete) < MEDIAN_NEEDS:
            return False
        there = [other[epoch] for other in complete if epoch in other]
        return bool(there) and max(curve.values()) < float(np.nanmedian(there))
