"""Several choices of hidden states from one pass: bit for bit what an encoder of each choice gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encoders.contract import random_sequence
from encoders.tiny import ESM2_CONFIG, NTV2_CONFIG, write_folder, write_library_folder
from isoformer.encoders import prepacked
from isoformer.encoders.attention import padded
from isoformer.encoders.catalogue import PUBLISHED
from isoformer.encoders.packed_encoder import PackedEncoder
from isoformer.encoders.registry import EncoderChoice, get_spec, load_encoder, load_tokenizer
from isoformer.encoders.spec import Encoded, LayeredEncoder, Packed, pack, padding_tokens

LAYERS = 3
STATES = ((-1, 1), (0, 1), (1, 1), (-2, 1), (-1, 4), (2, 2), (1, 2), (-1, 1))
"""`layer` and `average_layers` of each choice; one of them twice."""
NTV1_CONFIG = {**NTV2_CONFIG, "vocab_size": 4105, "position_embedding_type": "absolute"}
LENGTHS = (1, 40, 7, 7, 90)
MOST = 20


def esm2(folder: Path) -> EncoderChoice:
    return _in_folder(folder, "esm2", ESM2_CONFIG)


def ntv1(folder: Path) -> EncoderChoice:
    return _in_folder(folder, "ntv1-rna", NTV1_CONFIG)


def ntv2(folder: Path) -> EncoderChoice:
    return _in_folder(folder, "ntv2-dna", NTV2_CONFIG)


def rnafm(folder: Path) -> EncoderChoice:
    return EncoderChoice(name="rnafm", random_seed=1)


def hf(folder: Path) -> EncoderChoice:
    return EncoderChoice(name=f"hf:{write_library_folder(folder)}", modality="protein", random_seed=1)


def _in_folder(folder: Path, name: str, config: dict[str, Any]) -> EncoderChoice:
    folder = write_folder(folder, config, {"unread": torch.zeros(1)})
    return EncoderChoice(name=name, weights=str(folder), random_seed=1)


PACKED: tuple[Callable[[Path], EncoderChoice], ...] = (esm2, ntv1, ntv2, rnafm)


def layers_run(encoder: PackedEncoder, packed: Packed, states: list[tuple[int, ...]]) -> Counter[int]:
    """How often each layer, by number from 1, was run."""
    counts: Counter[int] = Counter()
    for number, layer in enumerate(encoder.model.encoder["layer"].children(), start=1):
        layer.register_forward_hook(lambda *_, number=number: counts.update([number]))
    encoder.encode_each(packed, states)
    return counts


@pytest.fixture(autouse=True)
def small_rnafm(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"num_hidden_layers": LAYERS, "hidden_size": 32, "num_attention_heads": 4}
    more = {"intermediate_size": 80, "max_position_embeddings": 130}
    entry = PUBLISHED["rnafm"]
    monkeypatch.setitem(PUBLISHED, "rnafm", replace(entry, config={**entry.config, **sizes, **more}))


@pytest.fixture(params=[True, False], ids=["prepacked", "plain"])
def prepack(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    if request.param and not prepacked.is_available():
        pytest.skip("this build of PyTorch has no oneDNN products")
    monkeypatch.setattr(prepacked, "is_available", lambda: request.param)
    yield request.param


def packed_for(choice: EncoderChoice) -> Packed:
    spec, tokenizer = get_spec(choice), load_tokenizer(choice)
    letters = [int(tokens * spec.letters_per_token) for tokens in LENGTHS]
    return pack([tokenizer(random_sequence(spec, length, seed)) for seed, length in enumerate(letters)])


def layered(choice: EncoderChoice) -> LayeredEncoder:
    encoder = load_encoder(choice)
    assert isinstance(encoder, LayeredEncoder)
    return encoder


def require_same(got: Encoded, expected: Encoded) -> None:
    assert torch.equal(got.hidden_PD, expected.hidden_PD)
    assert got.hidden_PD.dtype == expected.hidden_PD.dtype == torch.float32
    assert np.array_equal(got.offsets, expected.offsets)
    assert got.cls_BD is not None and expected.cls_BD is not None
    assert torch.equal(got.cls_BD, expected.cls_BD)


def require_each_as_alone(choice: EncoderChoice) -> None:
    """Each choice from one pass of an encoder of another choice, and from an encoder of its own."""
    choices = [choice.edited(layer=layer, average_layers=count) for layer, count in STATES]
    packed = packed_for(choice)
    shared = layered(choice.edited(layer=1)).encode_each(
        packed, [get_spec(one).hidden_states for one in choices]
    )
    alone = [load_encoder(one).encode(packed) for one in choices]
    for got, expected in zip(shared, alone, strict=True):
        require_same(got, expected)
    assert not torch.equal(alone[0].hidden_PD, alone[4].hidden_PD)


@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("make", PACKED)
def test_each_is_what_an_encoder_of_that_choice_gives(
    make: Callable[[Path], EncoderChoice], precision: str, tmp_path: Path, prepack: bool
) -> None:
    require_each_as_alone(make(tmp_path).edited(precision=precision))


@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("make", PACKED)
def test_each_is_the_same_in_windows(
    make: Callable[[Path], EncoderChoice], precision: str, tmp_path: Path
) -> None:
    choice = make(tmp_path).edited(precision=precision, long_sequences="windows", overlap_tokens=4)
    require_each_as_alone(choice.edited(max_tokens=MOST))


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_each_is_the_same_from_the_librarys_models(precision: str, tmp_path: Path) -> None:
    require_each_as_alone(hf(tmp_path).edited(precision=precision))


def test_each_is_the_same_with_the_shipped_weights() -> None:
    require_each_as_alone(EncoderChoice(name="esm2-tiny"))


def test_one_pass_and_no_layer_above_the_highest(tmp_path: Path, prepack: bool) -> None:
    choice = esm2(tmp_path)
    for states, expected in (
        ([(0,)], {}),
        ([(1,), (0, 1), (1,)], {1: 1}),
        ([(2,), (1, 2), (0,)], {1: 1, 2: 1}),
        ([(3,), (1, 2), (0, 1, 2, 3)], {1: 1, 2: 1, 3: 1}),
    ):
        encoder = load_encoder(choice)
        assert isinstance(encoder, PackedEncoder)
        assert layers_run(encoder, packed_for(choice), states) == expected


def test_a_library_model_runs_once_for_sequences_of_one_length(tmp_path: Path) -> None:
    choice = hf(tmp_path)
    encoder, runs = layered(choice), Counter[str]()
    encoder.model.register_forward_hook(lambda *_: runs.update(["model"]))
    encoder.encode_each(packed_for(choice), [(3,), (1, 2), (0,)])
    assert runs["model"] == len(set(LENGTHS))


def test_the_spec_says_which_states(tmp_path: Path) -> None:
    expected = [(3,), (0,), (1,), (2,), (0, 1, 2, 3), (1, 2), (0, 1), (3,)]
    for make in (*PACKED, hf):
        choice = make(tmp_path / make.__name__)
        choices = [choice.edited(layer=layer, average_layers=count) for layer, count in STATES]
        assert [get_spec(one).hidden_states for one in choices] == expected
    assert get_spec(EncoderChoice(name="composition-rna")).hidden_states == ()
    assert not isinstance(load_encoder(EncoderChoice(name="composition-rna")), LayeredEncoder)


def test_flops_count_the_layers_that_are_run_and_attention_by_pairs(tmp_path: Path) -> None:
    spec = get_spec(esm2(tmp_path))
    products = 4 * (32 * 32 + 32) + (32 * 80 + 80) + (80 * 32 + 32) + 4 * 32  # and biases and norms
    assert spec.flops(10) == 2 * LAYERS * products * 10
    assert spec.flops(10, 6 * 6 + 4 * 4) == spec.flops(10) + LAYERS * 4 * 32 * (6 * 6 + 4 * 4)
    first = get_spec(esm2(tmp_path).edited(layer=1))
    assert first.flops(10, 52) == pytest.approx(spec.flops(10, 52) / LAYERS)
    assert get_spec(esm2(tmp_path).edited(layer=0)).flops(10, 52) == 0
    library = get_spec(hf(tmp_path / "hf"))
    assert library.flops(10, 52) == 2 * library.parameter_count * 10 + LAYERS * 4 * 32 * 52
    fixed = get_spec(EncoderChoice(name="enformer", random_seed=0))
    assert fixed.flops(10, 100) == fixed.flops(10) > 0


def test_padding_is_that_of_the_route(tmp_path: Path) -> None:
    choice = esm2(tmp_path)
    packed, encoder = packed_for(choice), load_encoder(choice)
    assert isinstance(encoder, PackedEncoder)
    lengths = [length + 2 for length in LENGTHS]  # <cls> and <eos>
    assert padding_tokens(encoder, packed) == 0
    encoder.model.attend = padded
    assert padding_tokens(encoder, packed) == len(LENGTHS) * max(lengths) - sum(lengths)
    assert padding_tokens(load_encoder(hf(tmp_path / "hf")), packed) == 0


def test_padding_of_windows_is_that_of_the_windows(tmp_path: Path) -> None:
    choice = esm2(tmp_path).edited(max_tokens=MOST, long_sequences="windows", overlap_tokens=4)
    encoder = load_encoder(choice)
    assert isinstance(encoder, PackedEncoder)
    encoder.model.attend = padded
    windows = [3, *[MOST] * 3, 9, 9, *[MOST] * 7]  # 18 letters each, 14 apart
    expected = len(windows) * MOST - sum(windows)
    assert padding_tokens(encoder, packed_for(choice)) == expected


def test_padding_of_a_recurrence_and_of_an_encoder_that_does_not_say() -> None:
    unirep = EncoderChoice(name="unirep-64", random_seed=0)
    lengths = [length + 1 for length in LENGTHS]
    expected = len(lengths) * max(lengths) - sum(lengths)
    assert padding_tokens(load_encoder(unirep), packed_for(unirep)) == expected
    counts = EncoderChoice(name="composition-protein")
    assert padding_tokens(load_encoder(counts), packed_for(counts)) == 0
