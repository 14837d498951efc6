"""What the doctor says of encoders: the route that they take here, and plainly where it is the slower one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from isoformer import doctor
from isoformer.encoders import prepacked, registry
from isoformer.encoders.attention import PADDED, VARIABLE_LENGTH


@dataclass
class Elsewhere:
    """An encoder as it would be on a device that is not here: it runs on the CPU and names another route."""

    encoder: Any
    route: str

    def encode(self, packed: Any) -> Any:
        return self.encoder.encode(packed)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has variable-length attention in half precision alone."""
    load = registry.load_encoder

    def on_cpu(choice: registry.EncoderChoice, device: str) -> Any:
        route = PADDED if choice.precision == "f32" else VARIABLE_LENGTH
        encoder: Any = load(choice, "cpu")
        return encoder if device == "cpu" else Elsewhere(encoder, route.name)

    monkeypatch.setattr(registry, "load_encoder", on_cpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def found() -> list[str]:
    checks = list(doctor._encoders())
    assert all(check.passed and not check.mend and check.name == "encoders" for check in checks)
    return [check.found for check in checks]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_cpu_has_one_route() -> None:
    expected = "cpu f32: prepacked products, attention a sequence at a time"
    assert found() == [expected] or not prepacked.is_available()


def test_plain_layers_are_called_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacked, "is_available", lambda: False)
    assert "cpu f32: one attention call a sequence, no padding (the plain layers, slower" in found()[0]


def test_the_padded_fallback_is_called_that(a_gpu: None) -> None:
    _, half, single = found()
    assert half == "cuda bf16: variable-length flash attention"
    assert "cuda f32: padded attention with a mask (the padded fallback, slower" in single
    assert "precision bf16 or f16" in single


def test_a_device_that_cannot_encode_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(registry, "load_encoder", broken)
    check = next(doctor._encoders())
    assert (check.passed, check.found) == (False, "no kernel image is available")
    assert "build of torch" in check.mend


def test_importing_it_imports_no_torch() -> None:
    code = "import sys, isoformer.doctor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
