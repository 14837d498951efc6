"""The loop: it learns, it repeats itself, and a fit that was killed ends bit for bit like one that was
not.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from isoformer.errors import FingerprintError, InputError, IsoformerError
from isoformer.model import ModelConfig
from isoformer.training.config import TrainConfig
from isoformer.training.loop import fit, predict
from isoformer.training.statistics import redrawn_validation
from made_dataset import made_dataset

MODEL = ModelConfig(width=8, heads=2)
CONFIG = TrainConfig(model=MODEL, epochs=6, batch_size=8, learning_rate=5e-3, patience=6)
HARD = CONFIG.edited(
    model=MODEL.edited(dropout=0.2),
    schedule="cosine",
    warmup_epochs=1.0,
    gradient_clip=1.0,
    validation="redraw",
)
"""With everything on that has a state or a random number."""
TIMING = ("wait_share", "transcripts_per_second")


class KilledError(Exception):
    pass


def curve(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: value for key, value in entry.items() if key not in TIMING} for entry in history]


def test_it_learns_what_the_embeddings_carry() -> None:
    data = made_dataset()
    result = fit(CONFIG.edited(epochs=30), data)
    assert result.best["val_r2"] > 0.6
    assert result.history[0]["val_loss"] > 1.5 * result.best["val_loss"]
    rows = data.rows("test")
    error = predict(result.model, data, rows) - data.targets[rows]
    assert error[data.target_mask[rows]].std() < 0.7 * data.targets[rows][data.target_mask[rows]].std()


def test_the_same_seed_gives_the_same_curve_and_another_seed_another() -> None:
    data = made_dataset()
    assert curve(fit(HARD, data).history) == curve(fit(HARD, data).history)
    assert curve(fit(HARD, data).history) != curve(fit(HARD.edited(seed=1), data).history)


@pytest.mark.parametrize("config", [CONFIG, HARD], ids=["plain", "hard"])
@pytest.mark.parametrize("stop_after", [1, 3])
def test_resume_after_an_exception_is_exact(config: TrainConfig, stop_after: int, tmp_path: Path) -> None:
    data = made_dataset()
    undisturbed = fit(config, data)

    def report(metrics: dict[str, float], write: Any) -> None:
        if len(seen := [*metrics]) and metrics["epoch"] == stop_after:
            raise KilledError(seen)

    with pytest.raises(KilledError):
        fit(config, data, report=report, checkpoint_dir=tmp_path / "c")
    torch.rand(7)  # whatever else the process does with random numbers
    resumed = fit(config, data, resume_from=tmp_path / "c")
    assert curve(resumed.history) == curve(undisturbed.history)
    for name, tensor in undisturbed.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_resume_within_an_epoch_is_exact(tmp_path: Path) -> None:
    data, config = made_dataset(), HARD.edited(checkpoint_steps=2)
    undisturbed = fit(HARD, data)

    def report(metrics: dict[str, float], write: Any) -> None:
        if metrics == {"epoch": 2.0, "step": 4.0}:
            raise KilledError

    with pytest.raises(KilledError):
        fit(config, data, report=report, checkpoint_dir=tmp_path / "c")
    assert curve(fit(HARD, data, resume_from=tmp_path / "c").history) == curve(undisturbed.history)


KILLED_FIT = """
import os, signal, sys
from pathlib import Path
from made_dataset import made_dataset
from isoformer.training.config import TrainConfig
from isoformer.training.loop import fit

def report(metrics, write):
    if metrics["epoch"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)

fit(TrainConfig.model_validate_json(sys.argv[1]), made_dataset(), report=report,
checkpoint_dir=Path(sys.argv[2]))
"""


def test_resume_after_sigkill_is_exact(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_FIT, HARD.model_dump_json(), str(tmp_path / "c")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL
    data = made_dataset()
    assert curve(fit(HARD, data, resume_from=tmp_path / "c").history) == curve(fit(HARD, data).history)


def test_a_checkpoint_of_another_configuration_or_dataset_is_refused(tmp_path: Path) -> None:
    data = made_dataset()
    fit(CONFIG.edited(epochs=1), data, checkpoint_dir=tmp_path / "c")
    with pytest.raises(FingerprintError, match=r"train\.learning_rate = 0\.005, here it is 0\.1"):
        fit(CONFIG.edited(epochs=1, learning_rate=0.1), data, resume_from=tmp_path / "c")
    with pytest.raises(FingerprintError, match="data fingerprint"):
        fit(
            CONFIG.edited(epochs=1),
            replace(data, transcripts_fingerprint="other"),
            resume_from=tmp_path / "c",
        )


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_checkpoint_is_named(damage: str, tmp_path: Path) -> None:
    data = made_dataset()
    fit(CONFIG.edited(epochs=1), data, checkpoint_dir=tmp_path / "c")
    state = tmp_path / "c" / "state.pt"
    state.write_bytes(state.read_bytes()[:100]) if damage == "truncated" else state.unlink()
    with pytest.raises(InputError, match=r"state\.pt: not a checkpoint"):
        fit(CONFIG.edited(epochs=1), data, resume_from=tmp_path / "c")


def test_patience_ends_a_fit_and_the_best_epoch_is_kept() -> None:
    data = made_dataset()
    result = fit(CONFIG.edited(epochs=200, learning_rate=0.05, patience=3), data)
    assert result.stopped_by == "patience"
    assert len(result.history) == result.best_epoch + 4
    losses = [entry["val_loss"] for entry in result.history]
    assert result.best["val_loss"] == min(losses)
    rows = data.rows("validation")
    standardised = result.model.standardise(torch.from_numpy(data.targets[rows]))
    guess = result.model.standardise(torch.from_numpy(predict(result.model, data, rows)))
    mask = data.target_mask[rows]
    assert float((guess - standardised)[mask].square().mean()) == pytest.approx(min(losses), rel=1e-4)


def test_masked_targets_change_nothing() -> None:
    data = made_dataset()
    changed = replace(data, targets=np.where(data.target_mask, data.targets, 99).astype(np.float32))
    assert curve(fit(CONFIG, changed).history) == curve(fit(CONFIG, data).history)


def test_redrawn_validation_keeps_genes_whole_and_leaves_test_alone() -> None:
    data = made_dataset()
    drawn = [redrawn_validation(data, 0.2, seed) for seed in (0, 1)]
    for redrawn in drawn:
        genes = {
            name: set(redrawn.gene_ids[redrawn.split == name]) for name in ("train", "validation", "test")
        }
        assert not genes["train"] & genes["validation"]
        assert genes["validation"] <= set(data.gene_ids[data.split == "train"])
        assert genes["test"] == set(data.gene_ids[data.split == "test"])
        assert len(genes["validation"]) == round(0.2 * 24)
    assert (drawn[0].split != drawn[1].split).any()


def test_the_process_keeps_its_threads_and_random_numbers() -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(CONFIG.edited(epochs=1, threads=1), made_dataset())
    assert torch.equal(torch.rand(3), expected) and torch.get_num_threads() == threads


def test_metrics_of_an_epoch_are_few_and_finite() -> None:
    entry = fit(CONFIG.edited(epochs=1), made_dataset()).history[0]
    assert len(entry) <= 20 and all(math.isfinite(value) for value in entry.values())
    assert 0 <= entry["wait_share"] < 1


@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_empty_split_is_named(split: str) -> None:
    data = made_dataset()
    emptied = data.with_split(np.where(data.split == split, "test", data.split))
    with pytest.raises(InputError, match=rf"the split has no transcripts: got '{split}'; allowed: counts"):
        fit(CONFIG, emptied)


def test_a_dataset_without_the_requested_modality_is_named() -> None:
    data = made_dataset()
    with pytest.raises(InputError, match=r"no embeddings of this modality: got \['protein'\]"):
        fit(CONFIG, data.subset(["dna", "rna"]))
    data.states["protein"].sequence_of_N[:] = -1
    with pytest.raises(InputError, match="no transcript has any of the requested modalities"):
        fit(CONFIG.edited(model=MODEL.edited(modalities=("protein",))), data)


def test_some_transcripts_without_any_requested_modality_are_fine() -> None:
    result = fit(CONFIG.edited(model=MODEL.edited(modalities=("protein",))), made_dataset())
    assert all(math.isfinite(entry["val_loss"]) for entry in result.history)


def test_a_loss_that_explodes_says_what_to_change() -> None:
    data = made_dataset()
    model = MODEL.edited(zero_start=False)
    with pytest.raises(
        IsoformerError, match=r"not finite at epoch \d+, step \d+: lower train\.learning_rate"
    ):
        fit(CONFIG.edited(model=model, learning_rate=1e30, epochs=50), data)
