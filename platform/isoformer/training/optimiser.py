"""Adam over the parts of the model, each at its own rate, and the running mean of the weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from isoformer.model import IsoFormer

if TYPE_CHECKING:
    from isoformer.training.config import TrainConfig


def new_optimizer(model: IsoFormer, config: TrainConfig) -> torch.optim.AdamW:
    """Decoupled weight decay; 0 is plain Adam. `rate_share`: a group's rate over `learning_rate`.

    Groups are the rates that are asked for, in the order of the parts.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = config.learning_rates.get(_part(name), config.learning_rate)  # type: ignore[call-overload]
            groups.setdefault(rate / config.learning_rate, []).append(parameter)
    listed = [{"params": members, "rate_share": share} for share, members in groups.items()]
    return torch.optim.AdamW(listed, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


class Averaged:
    """The exponential running mean of all weights, in a model of its own: what is scored and kept.

    The decay starts low, min(decay, (1 + n) / (10 + n)) after n steps, so that the start is forgotten.
    """

    def __init__(self, model: IsoFormer, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: IsoFormer, steps: int) -> None:
        """Take in the weights after `steps` steps of the fit."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        for mean, now in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)
        for held, current in zip(self.model.buffers(), model.buffers(), strict=True):
            held.copy_(current)

    def weights(self) -> dict[str, Tensor]:
        """A copy, as a model's state."""
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}


def _part(name: str) -> str:
    """The part of the model that a parameter is in: head, fusion, or a modality."""
    first, _, rest = name.partition(".")
    return rest.partition(".")[0] if first == "inputs" else first
