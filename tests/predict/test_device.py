"""A device that is not there is said to be so before a model is loaded onto it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from isoformer.errors import ConfigError
from isoformer.explain.sources import open_model
from isoformer.predict.device import require_device
from isoformer.predict.inputs import PredictInput
from isoformer.predict.run import PredictRequest
from isoformer.settings import Settings


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_the_cpu_is_always_there() -> None:
    assert require_device("cpu") == "cpu"


@pytest.mark.parametrize("device", ["tpu", "", "cpu:0", "cuda:", "cuda:x"])
def test_another_name_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="not a device; allowed: cpu, cuda, cuda:<number>"):
        PredictRequest(PredictInput("rna.fa"), "out.csv", device=device)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=f"device {device}: PyTorch sees 0 CUDA devices here"):
        PredictRequest(PredictInput("rna.fa"), "out.csv", device=device)


def test_so_it_is_where_a_model_is_explained(tmp_path: Any) -> None:
    settings = Settings.model_validate({"root": str(tmp_path), "explain": {"device": "cuda"}})
    with pytest.raises(ConfigError, match="PyTorch sees 0 CUDA devices"):
        open_model(settings)
