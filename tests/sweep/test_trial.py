"""One trial without Ray: what it reports, what it shares, and that it never sees a test row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoformer.errors import ConfigError
from isoformer.model import ModelConfig
from isoformer.sweep.data import SharedData, load_shared
from isoformer.sweep.trial import TrialPlace, search
from isoformer.training.config import TrainConfig
from isoformer.training.data import PinnedDataset

RNA_POOLED = "tiny-rna.11111111.pooled.f16.aaaaaaaa"
KEYS: Any = {
    "rna": (RNA_POOLED, "tiny-rna.11111111.bins-4.f16.bbbbbbbb"),
    "protein": ("tiny-protein.22222222.pooled.f16.cccccccc", "tiny-protein.22222222.bins-4.f16.dddddddd"),
}


def trained(shared: SharedData, **changes: Any) -> list[dict[str, Any]]:
    config = TrainConfig(keys={"rna": RNA_POOLED}, model=ModelConfig(modalities=("rna",)), epochs=4)
    sent: list[dict[str, Any]] = []
    search({**config.model_dump(), **changes}, shared, metric="val_r2", send=sent.append)
    return sent


def test_a_trial_sends_one_result_an_epoch_and_a_last_one(shared: SharedData) -> None:
    sent = trained(shared)
    assert [result["epoch"] for result in sent] == [0, 1, 2, 3, 3]
    assert [result["finished"] for result in sent] == [False] * 4 + [True]
    kept = max(range(4), key=lambda epoch: -sent[epoch]["val_loss"])
    assert sent[-1]["score"] == sent[kept]["val_r2"], "the score of the epoch whose weights are kept"
    for epoch in range(4):
        best = max(range(epoch + 1), key=lambda one: -sent[one]["val_loss"])
        assert sent[epoch]["score"] == sent[best]["val_r2"]
    assert sent[-1]["error"] == "" and sent[-1]["seconds"] > 0


def test_an_error_is_a_result(shared: SharedData) -> None:
    (only,) = trained(shared, keys={"rna": "unknown"})
    assert only["finished"] and "unknown" in only["error"] and RNA_POOLED in only["error"]


def test_a_storage_that_fails_is_not_the_trials_error(shared: SharedData, tmp_path: Path) -> None:
    (tmp_path / "studies").write_text("in the way")
    sent: list[dict[str, Any]] = []
    config = TrainConfig(keys={"rna": RNA_POOLED}, model=ModelConfig(modalities=("rna",)), epochs=2)
    place = TrialPlace(str(tmp_path), "study", checkpoint_seconds=0.0)
    search(config.model_dump(), shared, metric="val_r2", send=sent.append, place=place)
    assert sent[-1]["finished"] and "not a folder" in sent[-1]["storage_error"] and not sent[-1]["error"]


def test_datasets_share_arrays_and_name_their_encoders(shared: SharedData) -> None:
    keys = {modality: listed[1] for modality, listed in KEYS.items()}
    first, second = shared.dataset(keys), shared.dataset(keys)
    assert np.shares_memory(first.states["rna"].flat_PD, second.states["rna"].flat_PD)
    assert first.encoder_keys == keys and first.encoder_trained["protein"] == "random"


def test_an_unknown_key_is_refused_with_those_there_are(shared: SharedData) -> None:
    with pytest.raises(ConfigError, match=RNA_POOLED):
        shared.dataset({"rna": "other"})


def test_every_key_is_loaded_once_and_no_test_row_with_it(
    load_made: Callable[..., PinnedDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[dict[str, str]] = []

    def load(root: str, keys: dict[Any, str], *, encoders: dict[Any, Any], mode: str) -> PinnedDataset:
        assert mode == "pinned", "trials share arrays"
        loads.append(dict(keys))
        return load_made(root, keys)

    monkeypatch.setattr("isoformer.sweep.data.load_dataset", load)
    shared = load_shared("anywhere", KEYS)
    assert loads == [{m: listed[i] for m, listed in KEYS.items()} for i in range(2)]
    assert set(shared.table.split) == {"train", "validation"}
    assert set(shared.states) == {(m, key) for m, listed in KEYS.items() for key in listed}
    dataset = shared.dataset({"rna": RNA_POOLED})
    assert len(dataset) == len(dataset.states["rna"].sequence_of_N) == 80
