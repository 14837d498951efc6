"""What a sweep is asked to do."""

from __future__ import annotations

import re
from typing import Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from isoformer.config import Address, FrozenConfig
from isoformer.schema import Modality
from isoformer.sweep.space import SearchSpace

Sampler = Literal["tpe", "gp", "cmaes", "nsga2", "random", "grid"]
Scheduler = Literal["asha", "hyperband", "median", "pbt", "none"]
Cost = Literal["seconds", "parameters"]
DATABASES: Final = ("sqlite:///", "postgresql+psycopg://", "postgresql://", "mysql+pymysql://", "mysql://")


class FinalConfig(FrozenConfig):
    """The best trials fitted anew, several seeds each, and scored once on the test genes."""

    top: int = Field(default=0, ge=0, description="so many of the best trials; 0: none")
    seeds: tuple[int, ...] = Field(default=(0, 1, 2, 3, 4), min_length=1)
    epochs: int | None = Field(default=None, ge=1, description="null: as many as a trial's")
    patience: int | None = Field(default=None, ge=1, description="null: a trial's")
    register_as: str | None = Field(
        default=None,
        min_length=1,
        description="name in MLflow's model registry; the best by validation is its alias `best`",
    )

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds) or min(seeds) < 0:
            raise ValueError("must be distinct whole numbers of at least 0")
        return seeds


class SweepConfig(FrozenConfig):
    """What is searched and how long. `keys`: the embedding datasets that each modality may use.

    A budget (`trials`, `hours`, `device_hours`, all sessions of the study together) that is used up starts no
    further trial; those that run go on to their ends.
    """

    study: str = Field(default="sweep", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    storage: Address | None = Field(
        default=None, description="database of the study; null: study.db in the study's folder"
    )
    trials: int = Field(default=16, ge=1)
    hours: float | None = Field(default=None, gt=0, description="of wall time")
    device_hours: float | None = Field(
        default=None, gt=0, description="of GPUs, or of CPUs where a trial has none"
    )
    metric: Literal["val_r2", "val_spearman"] = "val_r2"
    cost: Cost | None = Field(
        default=None, description="a second objective, to be low: a Pareto front is searched"
    )
    keys: dict[Modality, tuple[str, ...]] = Field(default_factory=dict)
    embed: bool = Field(
        default=False, description="make embeddings that are not there when a trial is to use them"
    )
    space: SearchSpace | None = Field(
        default=None, description="null: the default space over the keys there are"
    )
    variants: str | None = Field(
        default=None,
        description="a parameter whose choices get equal budgets, each searched for itself; "
        "null: fusion where the space is the default one",
    )
    sampler: Sampler = "tpe"
    seed: int = Field(default=0, ge=0)
    repeatable: bool = Field(
        default=True, description="a trial is drawn knowing only those well before it: reruns draw the same"
    )
    warm_start: tuple[Address, ...] = Field(
        default=(), description="earlier studies (name, or URL#name) and MLflow runs (mlflow:<run id>)"
    )
    epochs: int | None = Field(default=None, ge=1, description="of a trial at most; null: the training's own")
    scheduler: Scheduler | None = Field(
        default=None, description="null: asha; none with a second objective or several workers a trial"
    )
    grace_epochs: int = Field(default=6, ge=1, description="epochs before a trial may be stopped")
    population: int = Field(default=8, ge=2, description="pbt: trials of a generation")
    generation_epochs: int = Field(default=5, ge=1, description="pbt: epochs of a generation")
    reduction: int = Field(default=3, ge=2, description="asha, hyperband: one trial in so many goes on")
    cpus: float = Field(default=1.0, gt=0, description="logical CPUs of a trial, or of each of its workers")
    gpus: float = Field(default=0.0, ge=0, description="(share of a) GPU of a trial, or of each worker")
    concurrent: int | None = Field(default=None, ge=1, description="null: as many as the resources carry")
    checkpoint_seconds: float = Field(
        default=30.0, ge=0, description="between checkpoints of a trial: what a kill may cost"
    )
    max_failures: int = Field(default=2, ge=0, description="worker deaths that a trial survives")
    final: FinalConfig = FinalConfig()

    @field_validator("storage")
    @classmethod
    def _known_database(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(DATABASES):
            raise ValueError(f"must be null or start with one of {', '.join(DATABASES)}")
        return url and re.sub(r"^(postgresql|mysql)://", _with_driver, url)

    @model_validator(mode="after")
    def _generations(self) -> Self:
        if self.scheduler != "pbt":
            return self
        alone = {"variants": self.variants, "epochs": self.epochs, "warm_start": self.warm_start or None}
        if given := [name for name, value in alone.items() if value is not None]:
            raise ValueError(f"{', '.join(given)} do not go with scheduler pbt, which has generations")
        if self.sampler == "grid":
            raise ValueError("sampler grid does not go with scheduler pbt, whose trials have parents")
        return self

    @model_validator(mode="after")
    def _two_objectives(self) -> Self:
        if self.cost is None:
            return self
        if self.scheduler not in (None, "none"):
            raise ValueError(
                f"scheduler {self.scheduler} compares one score; with cost as a second objective: none"
            )
        if self.sampler == "cmaes":
            raise ValueError("sampler cmaes knows one objective; with cost: tpe, gp, nsga2, random, grid")
        return self

    @property
    def directions(self) -> tuple[Literal["maximize", "minimize"], ...]:
        """Of the score, and of the cost where it is an objective."""
        return ("maximize",) if self.cost is None else ("maximize", "minimize")


def _with_driver(match: re.Match[str]) -> str:
    return {"postgresql": "postgresql+psycopg://", "mysql": "mysql+pymysql://"}[match[1]]
