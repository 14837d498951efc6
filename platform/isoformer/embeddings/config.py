"""What to embed and how, as frozen data: the `embed` section of a configuration file.

Entries that name the same encoder with different layers or resolutions are put together: one forward pass
makes them all.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from isoformer.config import FrozenConfig
from isoformer.embeddings.forecast import Price
from isoformer.embeddings.key import DType, encoder_key
from isoformer.embeddings.token_budget import TokenBudget
from isoformer.encoders.registry import EncoderChoice, get_spec, weights_digest
from isoformer.encoders.resolution import max_positions, require_resolution
from isoformer.encoders.spec import EncoderSpec
from isoformer.encoders.weights_store import hub_repository, located
from isoformer.errors import ConfigError
from isoformer.storage import open_storage

CPU_BUDGET_TOKENS: Final = 2048
GPU_BUDGET_TOKENS: Final = 32768
"""A CPU is fastest where a pack stays in its cache; a GPU where it is full."""
_ANY_LAYER: Final = {name: EncoderChoice.model_fields[name].default for name in ("layer", "average_layers")}


class EncoderJob(EncoderChoice):
    """One embedding dataset: an encoder and how much of its output is kept."""

    resolution: str = Field(default="bins:16", description="pooled, max, cls, bins:N or tokens")

    @field_validator("resolution")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            max_positions(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return value

    def choice(self) -> EncoderChoice:
        """The encoder without the resolution."""
        return EncoderChoice(**self.model_dump(include=set(EncoderChoice.model_fields)))


class EmbedConfig(FrozenConfig):
    """Which encoders run over a prepared dataset, and on what. The defaults are the smallest CPU run."""

    encoders: tuple[EncoderJob, ...] = Field(
        default=tuple(EncoderJob(name=f"composition-{modality}") for modality in ("dna", "rna", "protein")),
        min_length=1,
    )
    dtype: DType = "f16"
    token_budget: int | None = Field(
        default=None, ge=1, description="tokens a pack; null: 2,048 on a CPU, 32,768 on a GPU"
    )
    actors: int = Field(default=1, ge=1, description="processes that encode")
    least_actors: int | None = Field(
        default=None, ge=1, description="begin with so many, and take more as the cluster grows; null: all"
    )
    cpus_per_actor: float = Field(default=1, ge=0)
    gpus_per_actor: float = Field(default=0, ge=0, description="0: CPU only; 0.5: two actors share a GPU")
    threads_per_actor: int | None = Field(default=None, ge=1, description="null: a node's cores, shared out")
    tokenise_tasks: int | None = Field(
        default=None,
        ge=1,
        description="tasks that cut and tokenise at a time; null: one for four actors, two at least",
    )
    cache_dir: str | None = Field(default=None, description="a node's copy of the reference; null: temporary")
    most_failures: int = Field(
        default=20, ge=0, description="of workers and of storage in a run, before it is given up"
    )
    most_quarantined: float = Field(
        default=0.1, ge=0, le=1, description="of a shard's sequences, by the encoder, before it is an error"
    )
    stall_seconds: float = Field(
        default=900, gt=0, description="without progress, before a worker is named and replaced"
    )
    prices: tuple[Price, ...] = Field(default=(), description="what nodes cost, for the plan")

    @model_validator(mode="after")
    def _least_is_not_more(self) -> Self:
        if self.least_actors is not None and self.least_actors > self.actors:
            raise ValueError(f"least_actors {self.least_actors} is more than actors {self.actors}")
        return self

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        return "cuda" if self.gpus_per_actor > 0 else "cpu"

    def budget(self) -> TokenBudget:
        """A new budget. One that the user set must hold every sequence; a default gives way to a long one."""
        default = CPU_BUDGET_TOKENS if self.device == "cpu" else GPU_BUDGET_TOKENS
        return TokenBudget(self.token_budget or default, must_hold_each=self.token_budget is not None)

    def tokenise_at_once(self) -> int:
        """As configured, or as many as keep GPUs busy: a task feeds about ten, fewer of small shards."""
        return self.tokenise_tasks or max(2, math.ceil(self.actors / 4))

    def threads(self, nodes: int = 1) -> int:
        """Threads of one actor: as configured, or this machine's cores shared among a node's actors."""
        cores = len(os.sched_getaffinity(0))
        return self.threads_per_actor or max(1, cores // math.ceil(self.actors / nodes))


@dataclass(frozen=True)
class EmbeddingSpec:
    """One embedding dataset that is wanted: an encoder with its layer, and a resolution."""

    key: str
    spec: EncoderSpec
    resolution: str


@dataclass(frozen=True)
class EncoderPass:
    """One forward pass and all datasets that come out of it: layers and resolutions of one encoder."""

    choice: EncoderChoice
    weights_digest: str
    datasets: tuple[EmbeddingSpec, ...]

    @property
    def spec(self) -> EncoderSpec:
        """Of the highest layer: what the pass costs."""
        return max((dataset.spec for dataset in self.datasets), key=lambda spec: spec.hidden_states[-1:])

    @property
    def keys(self) -> list[str]:
        return [dataset.key for dataset in self.datasets]

    @property
    def name(self) -> str:
        """The encoder with its options and weights, without resolution: what a speed is measured for."""
        given = self.choice.model_dump(exclude={"name", "weights", "random_seed"}, exclude_defaults=True)
        spec = self.spec
        if spec.hidden_states and spec.hidden_states[-1] < spec.layers:
            given["layers"] = spec.hidden_states[-1]
        options = "".join(f"+{option}={value}" for option, value in sorted(given.items()))
        return f"{spec.name}{options}.{self.weights_digest}"


def encoder_passes(config: EmbedConfig, root: str) -> list[EncoderPass]:
    """The configured datasets by forward pass, each once; published weights are looked up in the root.

    ConfigError for an unknown encoder or option, EncoderError where weights are missing or unusable.
    """
    passes: dict[EncoderChoice, tuple[EncoderChoice, str, dict[str, EmbeddingSpec]]] = {}
    for job in config.encoders:
        choice = job.choice()
        found = located(choice, open_storage(root)) if hub_repository(choice.name) else choice
        spec = get_spec(found)
        require_resolution(spec, job.resolution)
        shared = found.edited(**_ANY_LAYER) if spec.hidden_states else found
        if shared not in passes:
            passes[shared] = (shared, weights_digest(found), {})
        _, digest, datasets = passes[shared]
        key = encoder_key(spec, digest, job.resolution, config.dtype)
        datasets[key] = EmbeddingSpec(key, spec, job.resolution)
    return [
        EncoderPass(choice, digest, tuple(datasets.values())) for choice, digest, datasets in passes.values()
    ]
