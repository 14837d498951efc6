"""The whole configuration: one YAML file with a section a verb, read at the door of the command line.

root: s3://bucket/dataset        # where every verb finds and leaves its data
prepare: {annotation: …, reference: …, expression: …}
embed:   {encoders: [{name: esm2-tiny, resolution: "bins:16"}, …]}
train:   {learning_rate: 1.0e-3, model: {fusion: cross_attention}}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from isoformer.ablation import AblationConfig
from isoformer.config import FrozenConfig, build, load_yaml, with_overrides
from isoformer.embeddings.config import EmbedConfig, encoder_passes
from isoformer.errors import ConfigError
from isoformer.explain.config import ExplainConfig
from isoformer.planning import PrepareConfig
from isoformer.ray_session import RayConfig
from isoformer.schema import Modality
from isoformer.sweep import SweepConfig
from isoformer.tracking import TrackingConfig
from isoformer.training.config import TrainConfig
from isoformer.training.pretrain import PretrainConfig


class Settings(FrozenConfig):
    """Every verb's section; a verb reads its own, `root`, `ray` and `tracking`."""

    root: str = "isoformer-data"
    run: str = Field(default="final", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="train, evaluate")
    prepare: PrepareConfig | None = None
    embed: EmbedConfig = EmbedConfig()
    pretrain: PretrainConfig = PretrainConfig()
    train: TrainConfig = TrainConfig()
    sweep: SweepConfig = SweepConfig()
    evaluate: AblationConfig = AblationConfig()
    explain: ExplainConfig = ExplainConfig()
    tracking: TrackingConfig = TrackingConfig()
    ray: RayConfig = RayConfig()

    def require_prepare(self) -> PrepareConfig:
        """The prepare section; ConfigError where the file has none, since no input can be guessed."""
        if self.prepare is None:
            raise ConfigError("the configuration has no `prepare` section: it names the input files")
        return self.prepare

    def available_keys(self, *, random: bool = False) -> dict[Modality, tuple[str, ...]]:
        """The embedding datasets that `embed` makes: encoder keys by modality, in the order of the file.

        Encoders with random weights are never trained on unasked: they are listed with `random` alone.
        """
        keys: dict[Modality, list[str]] = {}
        for encoder_pass in encoder_passes(self.embed, self.root):
            if (encoder_pass.spec.trained == "random") == random:
                keys.setdefault(encoder_pass.spec.modality, []).extend(encoder_pass.keys)
        return {modality: tuple(listed) for modality, listed in keys.items()}

    def first_keys(self, *, random: bool = False) -> dict[Modality, str]:
        """Each modality's first embedding dataset."""
        return {modality: keys[0] for modality, keys in self.available_keys(random=random).items()}

    def train_config(self) -> TrainConfig:
        """The train section, its `keys` filled in with the first embedding dataset of each modality that has
        no encoder inside the model.
        """
        if self.train.keys:
            return self.train
        inside = self.train.model.encoders
        wanted = [modality for modality in self.train.model.modalities if modality not in inside]
        keys = {modality: key for modality, key in self.first_keys().items() if modality in wanted}
        return self.train.edited(keys=keys)

    def sweep_config(self) -> SweepConfig:
        """The sweep section, its `keys` filled in with all that `embed` makes."""
        return self.sweep if self.sweep.keys else self.sweep.edited(keys=self.available_keys())


def load_settings(path: str | Path | None, overrides: Sequence[str] = ()) -> Settings:
    """Read, override and check a configuration. ConfigError names the file, the key and the value."""
    data: dict[str, Any] = load_yaml(path) if path else {}
    return build(Settings, with_overrides(data, overrides), origin=str(path or "configuration"))
