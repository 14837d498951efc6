"""One model on several workers: replicated (DDP) or sharded (FSDP), and its whole state in either case.

With FSDP every block of an encoder inside the model is sharded by itself, the rest with the root, and the
state that is saved is the whole one, gathered on rank zero: a checkpoint does not depend on the number of
workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from isoformer.model import IsoFormer

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Replicas:
    """The model as each worker runs it."""

    def __init__(self, model: IsoFormer, *, world_size: int, sharded: bool) -> None:
        self.model = model
        self.is_sharded = sharded and world_size > 1
        self.run: nn.Module = model
        if self.is_sharded:
            _shard(model, world_size)
        elif world_size > 1:
            self.run = nn.parallel.DistributedDataParallel(model)

    @contextmanager
    def accumulating(self, *, is_last: bool) -> Iterator[None]:
        """Gradients of a part of a batch: they are exchanged with the last part only."""
        if self.is_sharded:
            cast(Any, self.model).set_requires_gradient_sync(is_last)
        waits = isinstance(self.run, nn.parallel.DistributedDataParallel) and not is_last
        with self.run.no_sync() if waits else nullcontext():  # type: ignore[operator]
            yield

    def weights(self) -> dict[str, Tensor]:
        """A copy of all weights. Sharded: on rank zero, empty elsewhere; every rank must call."""
        if self.is_sharded:
            return cast(dict[str, Tensor], get_model_state_dict(self.model, options=_WHOLE))
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Of all parameters, by the same rules."""
        if self.is_sharded:
            return cast(dict[str, Any], get_optimizer_state_dict(self.model, optimizer, options=_WHOLE))
        return optimizer.state_dict()

    def load(
        self, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
    ) -> None:
        """Put a whole state into place; every rank has read it."""
        if not self.is_sharded:
            self.model.load_state_dict(weights)
            optimizer.load_state_dict(dict(state))
            return
        set_model_state_dict(self.model, dict(weights), options=_WHOLE)
        set_optimizer_state_dict(self.model, optimizer, dict(state), options=_WHOLE)


def _shard(model: IsoFormer, world_size: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(model.parameters()).device.type, (world_size,))
    for modality in model.config.encoders:
        for block in model.encoder_inside(modality).blocks():
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
