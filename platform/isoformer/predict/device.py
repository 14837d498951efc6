"""The device that a model is read on, checked before anything is loaded onto it."""

from __future__ import annotations

from typing import Final

from isoformer.errors import ConfigError

DEVICES: Final = ("cpu", "cuda")


def require_device(device: str) -> str:
    """The same name. ConfigError for one that is not known, or that this machine does not have."""
    import torch

    kind, colon, number = device.partition(":")
    if kind not in DEVICES or (colon and not (kind == "cuda" and number.isdecimal())):
        raise ConfigError(f"device {device}: not a device; allowed: cpu, cuda, cuda:<number>")
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(number or 0) >= present:
        raise ConfigError(f"device {device}: PyTorch sees {present} CUDA devices here")
    return device
