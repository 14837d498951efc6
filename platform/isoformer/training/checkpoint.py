"""A checkpoint folder: everything that continues a fit exactly where it was.

    model.safetensors    the best model so far: the one to use
    latest.safetensors   the weights at this position
    state.pt             optimizer, position (epoch, step), early stopping, history, configuration
    (weights_only)

The learning rate and the random numbers are pure functions of the configuration and the position, so they
need no state.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from isoformer.errors import FingerprintError, InputError
from isoformer.model import IsoFormer, save_model
from isoformer.torch_file import TorchFileError, read_torch_file

MODEL_FILE: Final = "model.safetensors"
LATEST_FILE: Final = "latest.safetensors"
STATE_FILE: Final = "state.pt"


@dataclass
class Progress:
    """Where a fit stands: the next step to do is `step` of `epoch`; sums are of the epoch under way."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    value_count: float = 0.0
    best_score: float | None = None
    best_epoch: int = -1
    epochs_without_gain: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class FitState:
    """Whole weights at this position and the best so far, what the optimizer keeps, and the running mean of
    the weights where there is one.
    """

    latest: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    averaged: Mapping[str, Tensor] | None = None


def write_checkpoint(
    folder: Path, model: IsoFormer, state: FitState, progress: Progress, made_from: Mapping[str, Any]
) -> None:
    """Write the three files into `folder`, which is made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, folder / LATEST_FILE, weights=state.latest)
    save_model(model, folder / MODEL_FILE, weights=state.best)
    rest = {"optimizer": dict(state.optimizer), "averaged": dict(state.averaged) if state.averaged else None}
    torch.save({**rest, "progress": asdict(progress), "made_from": dict(made_from)}, folder / STATE_FILE)


def replace_checkpoint(folder: Path, write: Any) -> None:
    """Let `write(path)` make a checkpoint and put it at `folder` whole: a kill leaves the old one or the new
    one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    write(fresh)
    old = fresh.with_name(fresh.name + "-old")
    if folder.exists():
        os.rename(folder, old)
    os.rename(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def read_checkpoint(
    folder: Path, made_from: Mapping[str, Any], may_differ: Collection[str] = ()
) -> tuple[Progress, FitState]:
    """Position and state. What `may_differ` names is not compared.

    InputError where the folder is no checkpoint; FingerprintError where it was made from another
    configuration or data.
    """
    state = _state(folder / STATE_FILE)
    theirs = state["made_from"]
    compared = {*theirs, *made_from} - set(may_differ)
    differing = sorted(key for key in compared if theirs.get(key) != made_from.get(key))
    if differing:
        key = differing[0]
        raise FingerprintError(
            f"{folder}: the checkpoint was made with {key} = {theirs.get(key)!r}, "
            f"here it is {made_from.get(key)!r}"
        )
    latest, best = (_tensors(folder / name) for name in (LATEST_FILE, MODEL_FILE))
    return Progress(**state["progress"]), FitState(latest, best, state["optimizer"], state["averaged"])


def with_weights(model: IsoFormer, weights: Mapping[str, Tensor]) -> IsoFormer:
    """A copy of the model with other weights, on the CPU, in evaluation mode."""
    copy = model.unfilled_copy()
    copy.load_state_dict({name: tensor.detach().cpu() for name, tensor in weights.items()})
    return copy.eval()


def _state(file: Path) -> dict[str, Any]:
    """state.pt, with all that is needed of it."""
    try:
        found: Any = read_torch_file(file)
        if not isinstance(found, dict):
            raise TorchFileError(f"holds a {type(found).__name__}")
        for name in ("made_from", "progress", "optimizer"):
            if not isinstance(found.get(name), dict):
                raise TorchFileError(f"has no {name}")
        Progress(**found["progress"])
        TypeAdapter(Progress).validate_python(found["progress"])
    except (ValueError, TypeError) as error:
        raise InputError(f"not a checkpoint ({error})", file=file) from error
    return {"averaged": None, **found}


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"not a checkpoint ({error})", file=file) from error
