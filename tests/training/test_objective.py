"""Losses, the order of whole genes, shares and parts of a batch, rates, and the running mean of weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from isoformer.model import ModelConfig
from isoformer.training.batches import gene_order, parts_of, share_of
from isoformer.training.config import TrainConfig
from isoformer.training.loop import fit
from isoformer.training.objective import share_count, share_divergences, value_errors
from made_dataset import made_dataset

CONFIG = TrainConfig(model=ModelConfig(width=8, heads=2), epochs=4, batch_size=8, learning_rate=5e-3)


def made_values(rows: int = 11, tissues: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    predicted, target = (torch.randn(rows, tissues, generator=generator, dtype=torch.float64) for _ in "ab")
    return predicted, target, torch.rand(rows, tissues, generator=generator) > 0.3


def test_errors_are_summed_over_known_values() -> None:
    predicted, target, mask = made_values()
    squares = sum(
        float(predicted[b, k] - target[b, k]) ** 2 for b in range(11) for k in range(4) if mask[b, k]
    )
    assert float(value_errors(CONFIG, predicted, target, mask)) == pytest.approx(squares)


def test_hubers_error_is_the_square_within_delta_and_a_line_beyond() -> None:
    config = CONFIG.edited(loss="huber", huber_delta=0.5)
    error = torch.tensor([[0.2, -0.5, 3.0]], dtype=torch.float64)
    known = torch.ones(1, 3, dtype=torch.bool)
    single = [float(value_errors(config, error[:, [k]], torch.zeros(1, 1), known[:, :1])) for k in range(3)]
    assert single == pytest.approx([0.04, 0.25, 2 * 0.5 * (3.0 - 0.25)])


def test_share_divergence_is_that_of_a_plain_loop() -> None:
    predicted, target, mask = made_values()
    gene_B = np.array([5, 5, 5, 2, 2, 9, 7, 7, 7, 7, 3])
    total, pairs = 0.0, 0
    for gene in np.unique(gene_B):
        for k in range(4):
            known = [b for b in np.flatnonzero(gene_B == gene) if mask[b, k]]
            pairs += len(known) >= 2
            if len(known) < 2:
                continue
            shares = []
            for values in (target, predicted):
                tpm_plus_one = np.exp(np.array([float(values[b, k]) for b in known]))
                shares.append(tpm_plus_one / tpm_plus_one.sum())
            total += float((shares[0] * np.log(shares[0] / shares[1])).sum())
    found = share_divergences(predicted, target, mask, torch.from_numpy(gene_B))
    assert float(found) == pytest.approx(total, rel=1e-9)
    assert share_count(gene_B, mask.numpy()) == pairs
    assert float(share_divergences(target, target, mask, torch.from_numpy(gene_B))) == pytest.approx(
        0, abs=1e-12
    )


def test_share_divergence_has_the_right_gradient_and_none_for_a_lone_isoform() -> None:
    predicted, target, mask = made_values()
    gene_B = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 3, 4, 4])
    predicted.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: share_divergences(p, target, mask, gene_B), (predicted,))
    share_divergences(predicted, target, mask, gene_B).backward()
    assert predicted.grad is not None
    assert float(predicted.grad[5].abs().max()) == pytest.approx(0, abs=1e-12)
    assert float(predicted.grad[~mask].abs().max()) == 0


def test_the_share_objective_tells_isoforms_apart_where_the_values_do_not() -> None:
    """A shift of a whole gene costs the squared error much and the shares nothing."""
    target = torch.tensor([[3.0], [1.0]])
    mask, gene_B = torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, dtype=torch.int64)
    shifted, swapped = target + 2.0, target.flip(0)
    assert float(share_divergences(shifted, target, mask, gene_B)) == pytest.approx(0, abs=1e-6)
    assert float(share_divergences(swapped, target, mask, gene_B)) > 0.5


def test_batches_of_whole_genes_hold_every_row_once() -> None:
    random = np.random.default_rng(0)
    gene_N = np.repeat(np.arange(40), random.integers(1, 6, size=40))
    rows = random.permutation(len(gene_N))[: len(gene_N) - 3]
    lengths = random.integers(1, 50, size=len(gene_N))
    order = gene_order(rows, lengths, gene_N, 8, seed=1, epoch=2)
    again = gene_order(rows, lengths, gene_N, 8, seed=1, epoch=2)
    assert all(np.array_equal(a, b) for a, b in zip(order, again, strict=True))
    assert sorted(np.concatenate(order)) == sorted(rows)
    batch_of = {row: number for number, batch in enumerate(order) for row in batch}
    for gene in np.unique(gene_N[rows]):
        assert len({batch_of[row] for row in rows[gene_N[rows] == gene]}) == 1
    other = gene_order(rows, lengths, gene_N, 8, seed=1, epoch=3)
    assert [batch.tolist() for batch in other] != [batch.tolist() for batch in order]


@pytest.mark.parametrize("by_gene", [False, True])
def test_shares_and_parts_cover_a_batch(by_gene: bool) -> None:
    rows = np.arange(3, 24)
    gene_N = np.repeat(np.arange(10), 3) if by_gene else None
    shares = [share_of(rows, rank, 3, gene_N) for rank in range(3)]
    assert sorted(np.concatenate(shares)) == sorted(rows)
    for share in shares:
        parts = parts_of(share, 4, gene_N)
        assert np.array_equal(np.concatenate(parts), share)
        assert all(0 < len(part) <= 4 for part in parts)
        if gene_N is not None:
            genes = [set(gene_N[part]) for part in parts]
            assert sum(map(len, genes)) == len(set().union(*genes))


def test_a_fit_with_shares_learns_them_better() -> None:
    data = made_dataset(genes=60, isoforms=3)
    gene_N = np.unique(data.gene_ids, return_inverse=True)[1]
    rows = data.rows("train")

    def divergence(weight: float) -> float:
        from isoformer.training.loop import predict

        config = CONFIG.edited(epochs=12, patience=12, isoform_ratio_weight=weight)
        predicted = torch.from_numpy(predict(fit(config, data).model, data, rows))
        targets, mask = torch.from_numpy(data.targets[rows]), torch.from_numpy(data.target_mask[rows])
        return float(share_divergences(predicted, targets, mask, torch.from_numpy(gene_N[rows])))

    assert divergence(20.0) < divergence(0.0)


def test_a_running_mean_is_what_is_scored_and_kept() -> None:
    data = made_dataset()
    config = CONFIG.edited(epochs=3, patience=3, ema_decay=0.99)
    kept = fit(config, data)
    plain = fit(config.edited(ema_decay=None), data)
    assert [e["train_loss"] for e in kept.history] == [e["train_loss"] for e in plain.history]
    assert kept.history[-1]["val_loss"] != plain.history[-1]["val_loss"]
    assert kept.model.state_dict().keys() == plain.model.state_dict().keys()


def test_a_rate_of_its_own_is_a_share_of_the_schedule() -> None:
    data = made_dataset()
    config = CONFIG.edited(epochs=2, patience=2, learning_rate=2e-3, schedule="cosine")
    same = fit(config.edited(learning_rates={"fusion": 2e-3, "head": 2e-3}), data)
    assert same.history[-1]["train_loss"] == fit(config, data).history[-1]["train_loss"]
    still = fit(config.edited(learning_rates={"fusion": 1e-30}), data).model
    start = fit(config.edited(learning_rate=1e-30), data).model
    for name, tensor in still.state_dict().items():
        if name.startswith("fusion."):
            torch.testing.assert_close(tensor, start.state_dict()[name], rtol=0, atol=1e-20)
