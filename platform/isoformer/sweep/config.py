"""What a sweep is asked to do."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from isoformer.config import FrozenConfig
from isoformer.schema import Modality
from isoformer.sweep.space import SearchSpace
from isoformer.sweep.study import Sampler


class SweepConfig(FrozenConfig):
    """What is searched and how long. `keys`: the embedding datasets that each modality may use."""

    study: str = Field(default="sweep", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    trials: int = Field(default=16, ge=1)
    metric: Literal["val_r2", "val_spearman"] = "val_r2"
    keys: dict[Modality, tuple[str, ...]] = Field(default_factory=dict)
    space: SearchSpace | None = Field(
        default=None, description="null: the default space over the keys there are"
    )
    sampler: Sampler = "tpe"
    seed: int = Field(default=0, ge=0)
    epochs: int | None = Field(default=None, ge=1, description="of a trial at most; null: the training's own")
    grace_epochs: int = Field(default=6, ge=1, description="epochs before ASHA may stop a trial")
    reduction: int = Field(default=3, ge=2, description="ASHA goes on with one trial in so many")
    prune: bool = True
    cpus: float = Field(default=1.0, gt=0, description="logical CPUs of a trial")
    gpus: float = Field(default=0.0, ge=0, description="(share of a) GPU of a trial")
    concurrent: int | None = Field(default=None, ge=1, description="null: as many as the resources carry")
