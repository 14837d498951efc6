"""What a model is made of, as data: importable without torch, so that a command line starts at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from isoformer.config import FrozenConfig
from isoformer.encoders.registry import EncoderChoice
from isoformer.encoders.resolution import max_positions
from isoformer.errors import ConfigError
from isoformer.schema import MODALITIES, Modality

FUSION_NAMES: Final = (
    "cross_attention",
    "concat",
    "perceiver_shared",
    "perceiver_per_modality",
    "c_abstractor",
)
"""The keys of `fusion.FUSIONS`."""
UNIT_OPTIONS: Final = ("pre_norm", "fusion_dropout", "feed_forward")
"""Of cross-attention units; the paper's have none of it."""
WITHOUT_UNITS: Final = ("concat", "perceiver_shared")
"""Fusions in which no modality asks another."""


class EncoderInside(FrozenConfig):
    """An encoder that is part of the model and learns with it. Modalities without one read embeddings that
    were made before (`train.keys`).
    """

    encoder: EncoderChoice
    regime: Literal["full", "lora", "scratch"] = Field(
        default="full", description="all weights, from the pre-trained; adapters only; all, from random"
    )
    resolution: str = Field(default="tokens", description="of what the fusion reads, as in embed")
    gradient_checkpointing: bool = Field(default=False, description="compute twice, hold less")
    lora_rank: int = Field(default=8, ge=1)
    lora_alpha: int = Field(default=16, ge=1)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    lora_targets: tuple[str, ...] = Field(default=(), description="modules by name; empty: all matrices")

    @field_validator("resolution")
    @classmethod
    def _known_resolution(cls, value: str) -> str:
        try:
            max_positions(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _lora_options_with_lora(self) -> Self:
        given = [name for name in self.model_fields_set if name.startswith("lora_")]
        changed = [name for name in given if getattr(self, name) != type(self).model_fields[name].default]
        if changed and self.regime != "lora":
            raise ValueError(f"{', '.join(sorted(changed))} go with regime lora, not {self.regime}")
        if self.regime == "scratch" and self.encoder.random_seed is not None:
            raise ValueError("regime scratch draws its weights from train.seed; leave random_seed out")
        return self


class ModelConfig(FrozenConfig):
    """What the model is made of. With `width` null, `standardise_inputs` and `zero_start` false it is the
    paper's own.

    The two that differ from the paper are for frozen encoders. Their features differ in scale by orders of
    magnitude and cannot adapt, and the published unit has no normalisation: `standardise_inputs` brings each
    to mean 0 and deviation 1 over the train split. `zero_start` sets the head and each cross-attention's
    output to zero, so that training starts at the tissue means and at the plain pooled embeddings: on a few
    hundred genes a random start costs the first epochs and some of the score.
    """

    fusion: str = "cross_attention"
    modalities: tuple[Modality, ...] = MODALITIES
    width: int | None = Field(default=None, ge=1, description="common width; null: the encoders' own widths")
    heads: int = Field(default=8, ge=1)
    blocks: int = Field(default=1, ge=1, description="stacked rounds of attention")
    latents: int = Field(default=16, ge=1, description="perceiver fusions and c_abstractor only")
    queries: tuple[Modality, ...] | None = Field(
        default=None, description="cross_attention only: who asks and is pooled; null: every modality"
    )
    pre_norm: bool = Field(default=False, description="layer norms in front of each cross-attention")
    fusion_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="on what each cross-attention and its feed-forward add"
    )
    feed_forward: int = Field(
        default=0, ge=0, description="behind each cross-attention, so many widths wide; 0: none"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="on the pooled vector, before the head")
    encoders: dict[Modality, EncoderInside] = Field(
        default_factory=dict, description="encoders that learn with the model, a modality"
    )
    standardise_inputs: bool = Field(default=True, description="of embeddings; not of encoders inside")
    zero_start: bool = True

    @field_validator("fusion")
    @classmethod
    def _known_fusion(cls, value: str) -> str:
        if value not in FUSION_NAMES:
            raise ValueError(f"unknown fusion; allowed: {', '.join(FUSION_NAMES)}")
        return value

    @field_validator("modalities")
    @classmethod
    def _distinct_modalities(cls, value: tuple[Modality, ...]) -> tuple[Modality, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError(f"must name at least one of {', '.join(MODALITIES)}, each once")
        return tuple(modality for modality in MODALITIES if modality in value)

    @model_validator(mode="after")
    def _queries_are_modalities(self) -> Self:
        if self.queries is None:
            return self
        if self.fusion != "cross_attention":
            raise ValueError(
                f"queries {list(self.queries)} go with fusion cross_attention, not {self.fusion}"
            )
        if not self.queries or not set(self.queries) <= set(self.modalities):
            raise ValueError(
                f"queries {list(self.queries)} must be some of the modalities {list(self.modalities)}"
            )
        return self

    @model_validator(mode="after")
    def _unit_options_with_units(self) -> Self:
        changed = [name for name in UNIT_OPTIONS if getattr(self, name)]
        if changed and self.fusion in WITHOUT_UNITS:
            raise ValueError(f"{', '.join(changed)} are of cross-attention units; {self.fusion} has none")
        return self

    def with_fusion(self, fusion: str) -> Self:
        """The same with another fusion; what only the one before could take is left out."""
        names = UNIT_OPTIONS if fusion in WITHOUT_UNITS else ()
        surplus = {name: type(self).model_fields[name].default for name in names}
        queries = self.queries if fusion == "cross_attention" else None
        return self.edited(fusion=fusion, queries=queries, **surplus)

    @model_validator(mode="after")
    def _encoders_have_modalities(self) -> Self:
        if surplus := [modality for modality in self.encoders if modality not in self.modalities]:
            raise ValueError(f"encoders of {surplus}, but the modalities are {list(self.modalities)}")
        return self

    def with_modalities(self, modalities: Sequence[Modality]) -> Self:
        """The same with these modalities only; what belonged to another is left out."""
        kept = tuple(m for m in self.queries or () if m in modalities)
        return self.edited(
            modalities=tuple(modalities),
            encoders={m: inside for m, inside in self.encoders.items() if m in modalities},
            queries=kept or None,
        )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width is not None and self.width % self.heads:
            raise ValueError(f"heads {self.heads} does not divide width {self.width}")
        return self
