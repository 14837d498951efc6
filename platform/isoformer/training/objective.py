"""What a fit makes small: errors of standardised expression over known tissues, and, where asked for, of the
shares of a gene's isoforms.

Shapes: B rows of a batch, K tissues, G genes of the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from isoformer.training.config import TrainConfig


def value_errors(config: TrainConfig, predicted_BK: Tensor, target_BK: Tensor, mask_BK: Tensor) -> Tensor:
    """Sum over known values of the squared error (the paper's) or of Huber's, on standardised expression.

    Huber's is doubled, so that within `huber_delta` it is the squared error.
    """
    if config.loss == "huber":
        errors_BK = 2 * functional.huber_loss(
            predicted_BK, target_BK, reduction="none", delta=config.huber_delta
        )
    else:
        errors_BK = (predicted_BK - target_BK).square()
    return errors_BK.masked_fill(~mask_BK, 0.0).sum()


def share_divergences(predicted_BK: Tensor, target_BK: Tensor, mask_BK: Tensor, gene_B: Tensor) -> Tensor:
    """Sum over (gene, tissue) of the Kullback-Leibler divergence of a gene's predicted isoform shares from
    the measured ones, both from natural log(1 + TPM).

    A share is of 1 + TPM: one pseudo-TPM an isoform, so that a gene that is off has even shares and adds
    nothing. An isoform counts in the tissues where it is known; a gene with fewer than two of them adds zero.
    """
    _, group_B = torch.unique(gene_B, return_inverse=True)
    predicted_BK, target_BK = (_log_shares(x, mask_BK, group_B) for x in (predicted_BK, target_BK))
    divergence_BK = target_BK.exp() * (target_BK - predicted_BK)
    return divergence_BK.masked_fill(~mask_BK, 0.0).sum()


def share_count(gene_B: NDArray[np.int64], mask_BK: NDArray[np.bool_]) -> int:
    """(gene, tissue) pairs with two known isoforms or more: what `share_divergences` is a sum over."""
    genes, group_B = np.unique(gene_B, return_inverse=True)
    known_GK = np.zeros((len(genes), mask_BK.shape[1]), dtype=np.int64)
    np.add.at(known_GK, group_B, mask_BK)
    return int((known_GK >= 2).sum())


def _log_shares(values_BK: Tensor, mask_BK: Tensor, group_B: Tensor) -> Tensor:
    """values - logsumexp over the known values of the same group."""
    groups = int(group_B.max()) + 1
    index_BK = group_B[:, None].expand_as(values_BK)
    known_BK = values_BK.masked_fill(~mask_BK, -torch.inf)
    largest_GK = known_BK.new_full((groups, values_BK.shape[1]), -torch.inf)
    largest_GK = largest_GK.scatter_reduce(0, index_BK, known_BK.detach(), "amax")
    largest_BK = largest_GK.gather(0, index_BK).nan_to_num(neginf=0.0)
    sums_GK = torch.zeros_like(largest_GK).scatter_add(0, index_BK, (known_BK - largest_BK).exp())
    return values_BK - largest_BK - sums_GK.gather(0, index_BK).clamp(min=1e-6).log()
