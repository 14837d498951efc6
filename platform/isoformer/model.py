"""The IsoFormer model, read top to bottom: modality inputs → fusion → masked mean over positions → one linear
head.

A modality's input is either embeddings from the store (`Tokens`) or, where the model holds an encoder that
learns with it, token ids (`SequenceBatch`).
`forward` takes `{modality: input}` and gives standardised expression (B, K); `predict` gives natural log(1 +
TPM). The per-tissue mean and standard deviation of the train split, and those of the input features, are
buffers: a saved model is one safetensors file that needs nothing beside it.

Shapes: B transcripts, S distinct sequences, L positions, D encoder width, W common width, K tissues.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from isoformer.config import build
from isoformer.documents import DocumentError, parse_mapping
from isoformer.encoders.resolution import reduce_each
from isoformer.encoders.spec import Packed
from isoformer.errors import InputError
from isoformer.fusion import CrossAttention, FusionOptions, Tokens, build_fusion, masked_mean
from isoformer.model_config import EncoderInside, ModelConfig
from isoformer.schema import Modality

if TYPE_CHECKING:
    from isoformer.encoders.trainable import TrainableEncoder

__all__ = [
    "EncoderInside",
    "IsoFormer",
    "ModelConfig",
    "SequenceBatch",
    "Standardisation",
    "load_model",
    "save_model",
]


@dataclass(frozen=True)
class Standardisation:
    """Mean and standard deviation a column, of the train split; a constant column keeps deviation 1."""

    mean: NDArray[np.float32]
    sd: NDArray[np.float32]


@dataclass(frozen=True)
class SequenceBatch:
    """What an encoder inside the model reads: S distinct sequences, and which one each sample has (B,), -1
    for none.
    """

    packed: Packed
    sequence_B: Tensor

    def to(self, device: torch.device) -> SequenceBatch:
        return SequenceBatch(self.packed, self.sequence_B.to(device))


ModalityInput = Tokens | SequenceBatch
StartEncoder = Callable[[EncoderInside], "TrainableEncoder"]


class IsoFormer(nn.Module):
    """Expression of a transcript in K tissues from the embeddings of its DNA, RNA and protein."""

    target_mean_K: Tensor
    target_sd_K: Tensor

    def __init__(
        self,
        config: ModelConfig,
        widths: Mapping[Modality, int],
        target_names: Sequence[str],
        *,
        encoders: Mapping[Modality, TrainableEncoder] | None = None,
    ) -> None:
        """`widths` are the encoders'; `encoders` those of `config.encoders`. ConfigError where the heads do
        not divide a width they attend in.
        """
        super().__init__()
        self.config = config
        self.input_widths = {modality: widths[modality] for modality in config.modalities}
        self.target_names = tuple(target_names)
        inside = {m: EncoderInput((encoders or {})[m], s, config.width) for m, s in config.encoders.items()}
        self.inputs = nn.ModuleDict(
            {m: inside.get(m) or CachedInput(w, config.width) for m, w in self.input_widths.items()}
        )
        fused_from = {m: config.width or w for m, w in self.input_widths.items()}
        self.fusion = build_fusion(config.fusion, fused_from, _fusion_options(config))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(sum(self.fusion.widths), len(self.target_names))
        self.register_buffer("target_mean_K", torch.zeros(len(self.target_names)))
        self.register_buffer("target_sd_K", torch.ones(len(self.target_names)))
        if config.zero_start:
            self._start_at_zero()

    def forward(self, tokens: Mapping[Modality, ModalityInput]) -> Tensor:
        """Standardised expression, (B, K); a sample that lacks every modality gets the head's bias."""
        inputs = {modality: self.inputs[modality](tokens[modality]) for modality in self.config.modalities}
        pooled_BD = torch.cat([masked_mean(fused) for fused in self.fusion(inputs)], dim=1)
        return self.head(self.dropout(pooled_BD))

    def predict(self, tokens: Mapping[Modality, ModalityInput]) -> Tensor:
        """Natural log(1 + TPM), (B, K)."""
        return self(tokens) * self.target_sd_K + self.target_mean_K

    def standardise(self, targets_BK: Tensor) -> Tensor:
        """Targets as `forward` predicts them."""
        return (targets_BK - self.target_mean_K) / self.target_sd_K

    def set_statistics(self, targets: Standardisation, inputs: Mapping[Modality, Standardisation]) -> None:
        """Take the train split's means and deviations; `inputs` may be empty (features stay as they are)."""
        self.target_mean_K.copy_(torch.from_numpy(targets.mean))
        self.target_sd_K.copy_(torch.from_numpy(targets.sd))
        for modality, statistics in inputs.items():
            module = self.inputs[modality]
            assert isinstance(module, CachedInput)
            module.mean_D.copy_(torch.from_numpy(statistics.mean))
            module.sd_D.copy_(torch.from_numpy(statistics.sd))

    def parameter_counts(self) -> dict[str, int]:
        """Parameters with and without a gradient, of all and of every encoder inside, fusion and head."""
        parts: dict[str, nn.Module] = {"all": self, "head": self.head, "inputs": self.inputs}
        parts |= {m: self.inputs[m] for m in self.config.encoders}
        if isinstance(self.fusion, nn.Module):
            parts["fusion"] = self.fusion
        return {
            f"{name}_{kind}": sum(p.numel() for p in part.parameters() if p.requires_grad == learns)
            for name, part in parts.items()
            for kind, learns in (("trained", True), ("frozen", False))
        }

    def unfilled_copy(self) -> IsoFormer:
        """The same modules on the CPU with any weights, to be filled by `load_state_dict`."""
        from isoformer.encoders.trainable import unfilled

        inside = {m: unfilled(s, self.encoder_inside(m).config_json) for m, s in self.config.encoders.items()}
        return IsoFormer(self.config, self.input_widths, self.target_names, encoders=inside)

    def encoder_inside(self, modality: Modality) -> TrainableEncoder:
        """The encoder that learns with the model. KeyError where the modality reads embeddings."""
        module = self.inputs[modality]
        if not isinstance(module, EncoderInput):
            raise KeyError(modality)
        return module.encoder

    def _start_at_zero(self) -> None:
        for module in self.modules():
            if isinstance(module, CrossAttention):
                module.start_at_zero()
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


def _fusion_options(config: ModelConfig) -> FusionOptions:
    return FusionOptions(
        heads=config.heads,
        blocks=config.blocks,
        latents=config.latents,
        queries=config.queries,
        pre_norm=config.pre_norm,
        dropout=config.fusion_dropout,
        feed_forward=config.feed_forward,
    )


class CachedInput(nn.Module):
    """Embeddings from the store: standardised a feature, then, where a common width is asked for, projected
    to it.
    """

    mean_D: Tensor
    sd_D: Tensor

    def __init__(self, width: int, common_width: int | None) -> None:
        super().__init__()
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("sd_D", torch.ones(width))
        self.project = nn.Identity() if common_width is None else nn.Linear(width, common_width)

    def forward(self, tokens: Tokens) -> Tokens:
        standardised_BLD = (tokens.hidden_BLD - self.mean_D) / self.sd_D
        return Tokens(self.project(standardised_BLD), tokens.is_token_BL)


class EncoderInput(nn.Module):
    """An encoder that learns with the model: token ids → states at the asked resolution, then, where a common
    width is asked for, projected to it. Each distinct sequence of the batch is encoded once.
    """

    def __init__(self, encoder: TrainableEncoder, settings: EncoderInside, common_width: int | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.resolution = settings.resolution
        width = encoder.spec.width
        self.project = nn.Identity() if common_width is None else nn.Linear(width, common_width)

    def forward(self, batch: SequenceBatch) -> Tokens:
        states = reduce_each(self.encoder(batch.packed), self.resolution)
        lengths_S = torch.tensor([len(states_LD) for states_LD in states], device=batch.sequence_B.device)
        hidden_SLD = self.project(pad_sequence(states, batch_first=True))
        has_B, row_B = batch.sequence_B >= 0, batch.sequence_B.clamp(min=0)
        position_L = torch.arange(hidden_SLD.shape[1], device=row_B.device)
        is_token_BL = (position_L < lengths_S[row_B, None]) & has_B[:, None]
        return Tokens(hidden_SLD[row_B].masked_fill(~is_token_BL[..., None], 0.0), is_token_BL)


def save_model(
    model: IsoFormer,
    path: Path,
    extra: Mapping[str, Any] | None = None,
    *,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write weights (null: the model's own), buffers, configuration, widths and target names as one
    safetensors file.
    """
    described = {
        "config": model.config.model_dump(mode="json"),
        "input_widths": model.input_widths,
        "target_names": model.target_names,
        "encoder_configs": {m: model.encoder_inside(m).config_json for m in model.config.encoders},
        **(extra or {}),
    }
    state = model.state_dict() if weights is None else weights
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, path, metadata={"isoformer": json.dumps(described)})


def load_model(path: Path) -> IsoFormer:
    """Rebuild what `save_model` wrote. InputError where the file is not such a model."""
    try:
        with safe_open(path, framework="pt") as file:
            described = parse_mapping((file.metadata() or {})["isoformer"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, KeyError, DocumentError) as error:
        raise InputError(f"not a saved model ({error})", file=path) from error
    model = _filled(build(_Described, described, origin=str(path)), tensors, path)
    return model.eval()


class _Described(BaseModel):
    """What `save_model` writes beside the weights."""

    model_config = ConfigDict(frozen=True)

    config: ModelConfig
    input_widths: dict[Modality, Annotated[int, Field(ge=1)]]
    target_names: tuple[str, ...] = Field(min_length=1)
    encoder_configs: dict[Modality, Any] = Field(default_factory=dict)


def _filled(described: _Described, tensors: dict[str, Tensor], path: Path) -> IsoFormer:
    """Shapes are compared before any memory is taken for them."""
    config, sizes = described.config, (described.input_widths, described.target_names)
    try:
        if not config.encoders:
            with torch.device("meta"):
                IsoFormer(config, *sizes).load_state_dict({n: t.to("meta") for n, t in tensors.items()})
        model = IsoFormer(config, *sizes, encoders=_unfilled(config, described))
        model.load_state_dict(tensors)
    except (RuntimeError, KeyError) as error:
        problem = f"its weights are not those of the model that it describes ({error})"
        raise InputError(problem, file=path) from error
    return model


def _unfilled(config: ModelConfig, described: _Described) -> dict[Modality, TrainableEncoder]:
    if not config.encoders:
        return {}
    from isoformer.encoders.trainable import unfilled

    return {m: unfilled(inside, described.encoder_configs[m]) for m, inside in config.encoders.items()}
