"""`isoformer benchmark train`: its arithmetic, its inputs, and one small round of the real thing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from isoformer.benchmark.train import Rate, benchmark_train, ratios_of
from isoformer.benchmark.train_inputs import POSITIONS, WIDTHS, made_shards, proteins_both_ways
from isoformer.encoders.registry import EncoderChoice
from isoformer.storage import open_storage
from isoformer.training.streaming import new_feed


def test_ratios_are_of_one_round() -> None:
    found = ratios_of(
        [Rate(90.0, 5.0), Rate(50.0, 7.0), Rate(110.0, 6.0)],
        [Rate(100.0), Rate(100.0), Rate(100.0)],
        [1.0, 2.0, 1.0],
        [30.0, 40.0, 50.0],
    )
    assert found == {"loop_over_memory": 0.9, "cached_over_joint": 30.0, "startup_seconds": 6.0}


def test_made_shards_are_streamed_as_they_were_written(tmp_path: Path) -> None:
    data = made_shards(open_storage(str(tmp_path)), shards=3, transcripts=10)
    assert data.is_streamed and data.modalities == ("dna", "rna", "protein")
    assert (data.split == "validation").sum() == 3
    batch = new_feed(data, data.modalities, torch.device("cpu")).batch(np.array([0, 29]))
    for modality, width in WIDTHS.items():
        tokens = batch.tokens[modality]
        assert tokens.hidden_BLD.shape == (2, POSITIONS, width)  # type: ignore[union-attr]
        assert tokens.hidden_BLD.std() == pytest.approx(1.0, abs=0.05)  # type: ignore[union-attr]


def test_proteins_are_the_same_both_ways() -> None:
    choice = EncoderChoice(name="esm2-tiny", random_seed=0)
    inside, cached = proteins_both_ways(choice, 6, "bins:8")
    assert len(inside) == len(cached) == 6
    assert inside.widths == cached.widths
    kept = np.minimum(inside.tokens["protein"].lengths - 2, 8)  # without <cls> and <eos>
    assert cached.states["protein"].lengths.tolist() == kept.tolist()


@pytest.mark.long
def test_a_small_round_gives_every_figure(ray_local: None) -> None:
    result = benchmark_train("esm2-8m", rounds=1, shards=2, transcripts=20, proteins=6)
    assert set(result.ratios) == {"loop_over_memory", "cached_over_joint", "startup_seconds"}
    assert 0 < result.ratios["loop_over_memory"] < 3
    assert result.ratios["cached_over_joint"] > 1
    assert result.settings["transcripts"] == 40
    assert all(len(values) == 1 and values[0] >= 0 for values in result.raw.values())
