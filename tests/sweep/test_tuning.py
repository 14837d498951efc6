"""How many trials at once, on what, and that they share one copy of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoformer.errors import ConfigError
from isoformer.model import ModelConfig
from isoformer.sweep import SweepConfig, sweep
from isoformer.sweep.data import SharedData
from isoformer.sweep.tuning import concurrent_trials
from isoformer.tracking import TrackingConfig
from isoformer.training.config import TrainConfig
from isoformer.training.loop import fit
from sweep.conftest import KEYS


def nodes(*resources: dict[str, float]) -> Any:
    return lambda: [{"Alive": True, "Resources": each} for each in resources]


@pytest.mark.parametrize(
    ("cluster", "asked", "workers", "expected"),
    [
        ([{"CPU": 8.0}, {"CPU": 4.0}], {}, 1, 12),
        ([{"CPU": 8.0}, {"CPU": 3.0}], {"cpus": 2}, 1, 5),
        ([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}, {"CPU": 8.0}], {"gpus": 0.25}, 1, 6),
        ([{"CPU": 8.0}, {"CPU": 8.0}], {"cpus": 2}, 4, 2),
        ([{"CPU": 8.0}, {"CPU": 8.0}], {"concurrent": 3}, 1, 3),
        ([{"CPU": 1.0}, {"CPU": 1.0}], {"gpus": 1, "concurrent": 5}, 1, 5),
    ],
)
def test_as_many_at_once_as_the_nodes_carry(
    monkeypatch: pytest.MonkeyPatch, cluster: Any, asked: dict[str, Any], workers: int, expected: int
) -> None:
    monkeypatch.setattr("ray.nodes", nodes(*cluster))
    assert concurrent_trials(SweepConfig(**asked), workers) == expected


@pytest.mark.parametrize(
    ("asked", "workers", "message"),
    [
        ({"cpus": 16}, 1, r"asks for 16 CPU and 0 GPU.*largest node has 8 CPU and 1 GPU.*sweep.concurrent"),
        ({"gpus": 2}, 1, r"asks for 1 CPU and 2 GPU"),
        ({"cpus": 3}, 5, r"asks for 5 workers of 3 CPU and 0 GPU each"),
    ],
)
def test_what_would_wait_for_ever_is_refused(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], workers: int, message: str
) -> None:
    monkeypatch.setattr("ray.nodes", nodes({"CPU": 8.0, "GPU": 1.0}, {"CPU": 4.0}))
    with pytest.raises(ConfigError, match=message):
        concurrent_trials(SweepConfig(**asked), workers)


def test_a_single_machine_is_not_asked_for_more_than_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.nodes", nodes({"CPU": 64.0}))
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2})
    assert concurrent_trials(SweepConfig()) == 3
    assert concurrent_trials(SweepConfig(cpus=2)) == 1


def test_workers_map_the_data_and_hold_no_copy(ray_local: None, shared: SharedData) -> None:
    """64 MB more of embeddings; a worker that has read all of them holds next to none as its own."""
    import ray

    key = KEYS["rna"][0]
    states = shared.states["rna", key]
    large = type(states)(
        np.ones((1 << 20, 32), np.float16),
        np.array([0, 1 << 20]),
        np.zeros(len(states.sequence_of_N), np.int64),
    )
    data = SharedData(shared.table, {**shared.states, ("rna", key): large}, shared.names)

    def look(held: SharedData) -> tuple[float, int, bool]:
        import psutil

        array = held.dataset({"rna": key}).states["rna"].flat_PD  # type: ignore[union-attr]
        total = float(array.sum(dtype=np.float64))
        return total, psutil.Process().memory_full_info().uss, array.flags.writeable

    reference, before = ray.put(data), ray.put(shared)
    task = ray.remote(look)
    _, uss_before, _ = ray.get(task.remote(before))
    total, uss, is_writeable = ray.get(task.remote(reference))
    assert total == 32 * (1 << 20) and not is_writeable
    assert uss - uss_before < 16 << 20, "of 64 MB"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_trial_of_several_workers_runs_them(ray_local: None, shared: SharedData, tmp_path: Path) -> None:
    base = TrainConfig(
        model=ModelConfig(modalities=("rna", "protein"), width=8, heads=1), epochs=2, workers=2
    )
    config = SweepConfig(trials=1, keys=KEYS)
    with pytest.raises(ConfigError, match="stops trials between epochs"):
        sweep(config.edited(scheduler="asha"), base, str(tmp_path), data=shared)
    quiet = TrackingConfig(enabled=False)
    result = sweep(config, base, str(tmp_path), tracking=quiet, data=shared)
    (row,) = result.trials
    assert (row.state, row.epochs) == ("complete", 2), row.error
    assert set(row.tissues) == set(shared.table.target_names)
    assert result.best is not None
    keys = {m: result.best.keys[m] for m in result.best.model.modalities}
    alone = fit(result.best.edited(workers=1), shared.dataset(keys))
    assert row.value == pytest.approx(alone.best["val_r2"], abs=1e-4), "N workers follow the path of one"
    assert not list((tmp_path / "studies" / "sweep").glob("trials/**/*.*")), "its run folder is gone"
