"""Embeddings that are not there yet: cached ones are searched first, others made once, when it is time."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from isoformer.config import build
from isoformer.console import Output
from isoformer.errors import BudgetError
from isoformer.schema import Modality
from isoformer.settings import Settings
from isoformer.stages import run_embed
from isoformer.sweep import SearchSpace, SweepConfig, sweep
from isoformer.sweep.supply import EmbeddingSupply, MissingRun, Opening
from isoformer.tracking import TrackingConfig
from tiny_dataset import write_dataset

KEYS: dict[Modality, tuple[str, ...]] = {"rna": ("a", "b", "c"), "protein": ("p", "q")}


def run(name: str, *keys: str, seconds: float | None = 10.0) -> MissingRun:
    return MissingRun(name, keys, seconds, tokens=100)


def test_the_cheapest_opens_first_all_within_the_first_half() -> None:
    missing = [run("dear", "c", seconds=100.0), run("cheap", "b", "q", seconds=1.0)]
    opening = Opening.of(missing, KEYS, trials=60, device_hours=None)
    assert opening.opens_at == {"b": 10, "q": 10, "c": 20}
    assert not opening.permits(["b"], 9, None) and opening.permits(["b"], 10, None)
    assert not opening.permits(["b", "c"], 10, None) and opening.permits(["b", "c"], 20, None)


def test_a_modality_with_nothing_cached_begins_with_its_cheapest() -> None:
    missing = [run("x", "p", seconds=5.0), run("y", "q", seconds=2.0)]
    opening = Opening.of(missing, KEYS, trials=60, device_hours=None)
    assert opening.opens_at == {"q": 0, "p": 20}


def test_what_costs_more_than_half_of_what_is_left_is_not_made() -> None:
    opening = Opening.of([run("x", "c", seconds=100.0)], KEYS, trials=10, device_hours=1.0)
    assert opening.permits(["c"], 9, 200.0) and not opening.permits(["c"], 9, 199.0)


def test_an_unknown_price_and_a_budget_do_not_go_together() -> None:
    missing = [run("slow-encoder.1234", "c", seconds=None)]
    with pytest.raises(BudgetError, match=r"slow-encoder\.1234.*benchmark profile"):
        Opening.of(missing, KEYS, trials=10, device_hours=1.0)
    assert Opening.of(missing, KEYS, trials=10, device_hours=None).permits(["c"], 9, None)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_makes_what_a_trial_asks_for_and_only_then(ray_local: None, tmp_path: Path) -> None:
    """A real encoder: its pooled embeddings are there, those at bins:4 are not."""
    write_dataset(str(tmp_path), genes_per_shard=10)
    encoders = [{"name": "esm2-tiny", "resolution": resolution} for resolution in ("pooled", "bins:4")]
    data = {
        "root": str(tmp_path),
        "embed": {"encoders": encoders},
        "train": {"model": {"modalities": ["protein"]}, "epochs": 2},
    }
    settings = build(Settings, data)
    run_embed(build(Settings, {**data, "embed": {"encoders": encoders[:1]}}), Output(as_json=True))
    pooled, binned = settings.available_keys()["protein"]
    made: list[Collection[str]] = []

    class Watched(EmbeddingSupply):
        def make(self, keys: Collection[str]) -> float:
            made.append(keys)
            return super().make(keys)

    supply = Watched(settings.embed, settings.root)
    assert [each.keys for each in supply.missing()] == [(binned,)]
    config = SweepConfig(
        trials=8,
        keys=settings.available_keys(),
        space=build(SearchSpace, {"width": {"path": "model.width", "choices": [16, 32]}}),
        sampler="random",
        seed=3,
    )
    quiet = TrackingConfig(enabled=False)
    result = sweep(config, settings.train, settings.root, tracking=quiet, supply=supply)
    labels = [row.params["resolution"] for row in result.trials]
    assert all(row.state == "complete" for row in result.trials) and len(labels) == 8, result.trials
    assert labels[:2] == ["pooled"] * 2, "what is cached is searched first"
    assert "bins-4" in labels and made == [(binned,)] and supply.missing() == []
    assert result.best is not None and result.best.keys["protein"] in (pooled, binned)
