"""How a model is fitted, as data."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from isoformer.config import FrozenConfig
from isoformer.model_config import ModelConfig
from isoformer.schema import Modality

Rate = Annotated[float, Field(gt=0)]


class TrainConfig(FrozenConfig):
    """How a model is fitted. The paper: Adam, 3e-5, batch 64, on encoders that learn along; these defaults
    are for small frozen ones on a CPU. `keys` names the embedding dataset of each modality (filled in from
    `embed` where empty); a modality under `model.encoders` needs none: its encoder learns along."""

    keys: dict[Modality, str] = Field(default_factory=dict)
    data: Literal["auto", "pinned", "streamed"] = Field(
        default="auto", description="embeddings in memory, or read as they are needed; auto: where they fit"
    )
    stream_shards: int = Field(default=2, ge=1, description="shuffled together, and held at a time, twice")
    model: ModelConfig = ModelConfig()
    learning_rate: float = Field(default=1e-3, gt=0)
    learning_rates: dict[Literal["head", "fusion", "dna", "rna", "protein"], Rate] = Field(
        default_factory=dict, description="of a part that learns at another rate than learning_rate"
    )
    loss: Literal["mse", "huber"] = "mse"
    huber_delta: float = Field(default=1.0, gt=0, description="in standard deviations of a tissue")
    isoform_ratio_weight: float = Field(
        default=0.0, ge=0, description="of the divergence of a gene's isoform shares, beside the loss"
    )
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_epochs: float = Field(default=0.0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled (AdamW); 0 is plain Adam")
    gradient_clip: float | None = Field(default=None, gt=0)
    ema_decay: float | None = Field(
        default=None, gt=0, lt=1, description="score and keep a running mean of the weights"
    )
    batch_size: int = Field(default=32, ge=1, description="over all workers; of a step of the optimiser")
    micro_batch_size: int | None = Field(
        default=None, ge=1, description="through the model at once, a worker; gradients add up to the batch"
    )
    precision: Literal["f32", "bf16"] = Field(default="f32", description="of products; weights stay f32")
    epochs: int = Field(default=30, ge=1)
    patience: int = Field(default=8, ge=1, description="epochs without gain before stopping")
    monitor: Literal["val_loss", "val_r2", "val_spearman"] = "val_loss"
    validation: Literal["dataset", "redraw"] = "dataset"
    validation_fraction: float = Field(default=0.1, gt=0, lt=1, description="of train genes, with redraw")
    seed: int = Field(default=0, ge=0)
    threads: int = Field(default=1, ge=1, description="of torch, a worker")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int = Field(default=1, ge=1)
    parallel: Literal["ddp", "fsdp"] = Field(default="ddp", description="weights on each worker, or sharded")
    max_failures: int = Field(default=2, ge=0, description="worker deaths that are survived")
    checkpoint_steps: int | None = Field(
        default=None, ge=1, description="also within an epoch, every so many steps"
    )

    @model_validator(mode="after")
    def _averaging_needs_whole_weights(self) -> Self:
        if self.ema_decay is not None and self.parallel == "fsdp":
            raise ValueError("ema_decay needs whole weights on each worker: parallel ddp, or no ema_decay")
        return self

    @model_validator(mode="after")
    def _rates_have_parts(self) -> Self:
        known = {"head", "fusion", *self.model.modalities}
        if unknown := sorted(set(self.learning_rates) - known):
            raise ValueError(f"learning_rates of {unknown}; the model has {sorted(known)}")
        return self
