"""How a model is fitted, as data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from isoformer.config import FrozenConfig
from isoformer.model_config import ModelConfig
from isoformer.schema import Modality


class TrainConfig(FrozenConfig):
    """How a model is fitted. The paper: Adam, 3e-5, batch 64, on encoders that learn along; these defaults
    are for small frozen ones on a CPU. `keys` names the embedding dataset of each modality (filled in from
    `embed` where empty)."""

    keys: dict[Modality, str] = Field(default_factory=dict)
    model: ModelConfig = ModelConfig()
    learning_rate: float = Field(default=1e-3, gt=0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_epochs: float = Field(default=0.0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled (AdamW); 0 is plain Adam")
    gradient_clip: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=32, ge=1, description="over all workers")
    epochs: int = Field(default=30, ge=1)
    patience: int = Field(default=8, ge=1, description="epochs without gain before stopping")
    monitor: Literal["val_loss", "val_r2", "val_spearman"] = "val_loss"
    validation: Literal["dataset", "redraw"] = "dataset"
    validation_fraction: float = Field(default=0.1, gt=0, lt=1, description="of train genes, with redraw")
    seed: int = Field(default=0, ge=0)
    threads: int = Field(default=1, ge=1, description="of torch, a worker")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int = Field(default=1, ge=1)
    max_failures: int = Field(default=2, ge=0, description="worker deaths that are survived")
    checkpoint_steps: int | None = Field(
        default=None, ge=1, description="also within an epoch, every so many steps"
    )
