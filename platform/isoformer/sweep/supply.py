"""Embeddings that a sweep may use and that are not there yet: what they cost, and when one is worth making.

A trial on cached embeddings costs its training alone; the first one on others pays an embedding run, which
all later ones then share. So cached ones are searched first, and each run of an encoder that is missing is
permitted from some trial on, the cheapest first, evenly over the first half of the trials: late enough to
know something, early enough for its price to be shared. It is made when a trial is drawn that asks for it,
never where its forecast is more than half of the device-hours that are left; until then such draws are drawn
anew.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from isoformer.errors import BudgetError
from isoformer.schema import Modality

if TYPE_CHECKING:
    from isoformer.embeddings.config import EmbedConfig


@dataclass(frozen=True)
class MissingRun:
    """One forward pass that is not done (or not wholly): its embedding keys, and what it takes.

    `device_seconds` is null where the encoder's speed was not measured.
    """

    name: str
    keys: tuple[str, ...]
    device_seconds: float | None
    tokens: int


class Supply(Protocol):
    """Where embeddings come from."""

    def missing(self) -> list[MissingRun]:
        """What is not there."""
        ...

    def make(self, keys: Collection[str]) -> float:
        """Make these (and what comes out of the same passes); device-seconds that it took."""
        ...


class EmbeddingSupply:
    """`isoformer embed`'s own plan and pipeline, an encoder at a time. Ray must be connected."""

    def __init__(self, config: EmbedConfig, root: str) -> None:
        self._config, self._root = config, root

    def missing(self) -> list[MissingRun]:
        from isoformer.embeddings.plan import plan

        planned = plan(self._config, self._root)
        runs = []
        for encoder in planned.encoders:
            keys = tuple(key for key in encoder.keys if len(planned.present[key]) < planned.shards)
            if keys:
                runs.append(MissingRun(encoder.name, keys, encoder.missing_seconds, encoder.missing_tokens))
        return runs

    def make(self, keys: Collection[str]) -> float:
        from isoformer.embeddings.config import encoder_passes
        from isoformer.embeddings.pipeline import embed

        jobs = [
            job
            for job in self._config.encoders
            if set(encoder_passes(self._config.edited(encoders=[job]), self._root)[0].keys) & set(keys)
        ]
        report = embed(self._config.edited(encoders=jobs), self._root)
        return report.actual_seconds * self._config.actors


@dataclass(frozen=True)
class Opening:
    """From which trial on each missing key may be made."""

    opens_at: Mapping[str, int]
    device_seconds: Mapping[str, float | None]

    @classmethod
    def of(
        cls,
        missing: Sequence[MissingRun],
        keys: Mapping[Modality, Sequence[str]],
        *,
        trials: int,
        device_hours: float | None,
    ) -> Opening:
        """BudgetError where device-hours are limited and an encoder's speed is not known."""
        unknown = [run.name for run in missing if run.device_seconds is None]
        if unknown and device_hours is not None:
            raise BudgetError(
                f"sweep.device_hours {device_hours:g}: the speed of {', '.join(unknown)} is not known; "
                f"measure it (isoformer benchmark profile), embed it beforehand, or leave sweep.embed out"
            )
        cheapest_first = sorted(missing, key=lambda run: (run.device_seconds or 0.0, run.tokens, run.name))
        opens_at: dict[str, int] = {}
        for place, run in enumerate(cheapest_first, 1):
            at = math.ceil(place / (len(cheapest_first) + 1) * trials / 2)
            opens_at |= dict.fromkeys(run.keys, at)
        for listed in keys.values():  # a modality with nothing cached begins with its cheapest
            if listed and all(key in opens_at for key in listed):
                opens_at[min(listed, key=lambda key: opens_at[key])] = 0
        costs = {key: run.device_seconds for run in missing for key in run.keys}
        return cls(opens_at, costs)

    def permits(self, keys: Collection[str], number: int, device_seconds_left: float | None) -> bool:
        """Whether trial `number` may have these made."""
        if any(number < self.opens_at[key] for key in keys):
            return False
        forecast = sum(self.device_seconds[key] or 0.0 for key in keys)
        return device_seconds_left is None or forecast <= device_seconds_left / 2
