"""What `explain` is asked for; importable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from isoformer.config import FrozenConfig
from isoformer.schema import Split

Baseline = Literal["unknown", "mask", "zero"]
Marks = Literal["attended", "attending"]


class ExplainConfig(FrozenConfig):
    """Section `explain` of the configuration."""

    format: Literal["svg", "png"] = Field(default="svg", description="of the plots")
    device: Literal["cpu", "cuda"] = "cpu"
    batch_size: int = Field(default=32, ge=1, description="transcripts a prediction")
    max_predictions: int = Field(default=20_000, ge=1, description="more is refused, with count and cost")

    mu: float = Field(default=0.01, ge=0, lt=1, description="attention: what counts as attended to (paper)")
    significance: float = Field(default=0.05, gt=0, lt=1, description="attention: of the t-test (paper)")
    marks: Marks = Field(
        default="attended", description="attention: which token of a pair lies in the region"
    )
    split: Split = Field(default="test", description="attention: the transcripts that are read")
    transcripts: int = Field(default=200, ge=2, description="attention: at most so many distinct RNAs")

    baseline: Baseline = Field(default="unknown", description="attribution: what a token is compared with")
    steps: int = Field(default=64, ge=2, description="attribution: points of the integral")
    step_batch: int = Field(default=8, ge=1, description="attribution: points at once on the device")

    max_allele_bases: int = Field(default=1000, ge=1, description="variants: longer alleles are refused")
    splice_site_bases: int = Field(default=2, ge=0, description="variants: intron bases beside an exon")
