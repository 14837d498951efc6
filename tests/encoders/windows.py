"""What the tests of fixed-window networks share: random weights, letters as columns, a distance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def with_values_that_count(model: Any) -> Any:
    """Norms, biases and running statistics off their start, projections filled, values of order 1."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.ndim > 1 and tensor.requires_grad:
            tensor.data.normal_(0.0, 0.7 * tensor[0].numel() ** -0.5)
        elif tensor.is_floating_point() and not name.endswith("positions"):
            tensor.data.add_(0.1 * torch.randn(tensor.shape))
    return model.eval()


def one_hot(sequences: list[str]) -> Tensor:
    """(B, L, 4), in the order A C G T; any other letter is zeros."""
    columns = torch.eye(5, 4)
    return torch.stack([columns[["ACGTN".index(letter) for letter in text.upper()]] for text in sequences])


def largest_difference(got: Tensor, expected: Tensor) -> float:
    """Relative to the largest value of the same position."""
    return float(((got - expected).abs().amax(-1) / expected.abs().amax(-1)).max())
