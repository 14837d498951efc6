"""What to embed and how, as frozen data: the `embed` section of a configuration file.

Entries that name the same encoder with different resolutions are put together: one forward pass makes
them all.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import Field, field_validator

from isoformer.config import FrozenConfig
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
    cpus_per_actor: float = Field(default=1, ge=0)
    gpus_per_actor: float = Field(default=0, ge=0, description="0: CPU only; 0.5: two actors share a GPU")
    threads_per_actor: int | None = Field(default=None, ge=1, description="null: a node's cores, shared out")
    tokenise_tasks: int = Field(default=2, ge=1, description="tasks that cut and tokenise at a time")
    cache_dir: str | None = Field(default=None, description="a node's copy of the reference; null: temporary")

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        return "cuda" if self.gpus_per_actor > 0 else "cpu"

    def budget(self) -> TokenBudget:
        """A new budget. One that the user set must hold every sequence; a default gives way to a long one."""
        default = CPU_BUDGET_TOKENS if self.device == "cpu" else GPU_BUDGET_TOKENS
        return TokenBudget(self.token_budget or default, must_hold_each=self.token_budget is not None)

    def threads(self, nodes: int = 1) -> int:
        """Threads of one actor: as configured, or this machine's cores shared among a node's actors."""
        cores = len(os.sched_getaffinity(0))
        return self.threads_per_actor or max(1, cores // math.ceil(self.actors / nodes))


@dataclass(frozen=True)
class EncoderGroup:
    """One encoder and all that is asked of it: `keys` maps a resolution to its dataset's key."""

    choice: EncoderChoice
    spec: EncoderSpec
    weights_digest: str
    keys: dict[str, str]

    @property
    def name(self) -> str:
        """The encoder with its options and weights, without resolution: what a speed is measured for."""
        given = self.choice.model_dump(exclude={"name", "weights", "random_seed"}, exclude_defaults=True)
        options = "".join(f"+{option}={value}" for option, value in sorted(given.items()))
        return f"{self.spec.name}{options}.{self.weights_digest}"


def encoder_groups(config: EmbedConfig, root: str) -> list[EncoderGroup]:
    """The configured encoders, each once; published weights are looked up in the root.

    ConfigError for an unknown encoder or option, EncoderError where weights are missing or unusable.
    """
    groups: dict[EncoderChoice, EncoderGroup] = {}
    for job in config.encoders:
        choice = job.choice()
        if choice not in groups:
            found = located(choice, open_storage(root)) if hub_repository(choice.name) else choice
            groups[choice] = EncoderGroup(found, get_spec(found), weights_digest(found), {})
        group = groups[choice]
        require_resolution(group.spec, job.resolution)
        key = encoder_key(group.spec, group.weights_digest, job.resolution, config.dtype)
        group.keys[job.resolution] = key
    return list(groups.values())
