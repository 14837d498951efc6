"""`isoformer benchmark encoders`: what it prints, what it refuses, and its arithmetic on made-up timings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import EsmModel

from isoformer.benchmark import encoders, library, rounds
from isoformer.benchmark.encoders import benchmark_encoders
from isoformer.benchmark.rounds import Benchmark, interleaved, median_ratio
from isoformer.benchmark.sequences import spread_over_lengths
from isoformer.cli import main
from isoformer.encoders.catalogue import PUBLISHED
from isoformer.encoders.registry import EncoderChoice, load_tokenizer
from isoformer.encoders.spec import EncoderSpec, Tokenized
from isoformer.errors import ConfigError, EncoderError

NAME = "esm2-8m"
TINY = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
LIBRARY = {"packed_over_padded8", "packed_over_single", "packed_over_onnxruntime"}
PRODUCTS = {"matmul_fraction", "prepacked_matmul_fraction"}
SHORT = ["MKTAYIAKQRQISFVK"[: 5 + i % 11] for i in range(24)]


@pytest.fixture(scope="module", autouse=True)
def tiny_catalogue() -> Iterator[None]:
    entry = PUBLISHED[NAME]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PUBLISHED, NAME, replace(entry, config={**entry.config, **TINY}))
        yield


@pytest.fixture
def short_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short proteins, and the library itself in place of its export to ONNX."""

    def tokens(choice: EncoderChoice, _: EncoderSpec) -> list[Tokenized]:
        return [load_tokenizer(choice)(sequence) for sequence in SHORT]

    def not_exported(library: EsmModel, threads: int, folder: Path) -> Callable[[Tokenized], Any]:
        def run(one: Tokenized) -> Any:
            ids = torch.from_numpy(one.token_ids.astype(np.int64))[None]
            return library(ids).last_hidden_state[0].numpy()

        return run

    monkeypatch.setattr(encoders, "protein_and_rna_tokens", tokens)
    monkeypatch.setattr(encoders, "onnx_runtime", not_exported)


@pytest.fixture(scope="module")
def result(tiny_catalogue: None) -> Benchmark:
    threads = torch.get_num_threads()
    result = benchmark_encoders(NAME, rounds=1, seconds=0.001, threads=1)
    assert torch.get_num_threads() == threads
    return result


class TestOneRound:
    """On the shipped sample, with ONNX Runtime."""

    def test_the_ratios_are_those_that_are_documented(self, result: Benchmark) -> None:
        expected = LIBRARY | PRODUCTS if "prepacked_matmul" in result.raw else LIBRARY | {"matmul_fraction"}
        assert result.ratios.keys() == expected
        assert all(value > 0 for value in result.ratios.values())

    def test_every_timing_is_there(self, result: Benchmark) -> None:
        contestants = {"packed", "padded8", "single", "onnxruntime", "matmul"}
        assert contestants <= result.raw.keys()
        assert {len(timings) for timings in result.raw.values()} == {result.rounds} == {1}
        for name in ("padded8", "single", "onnxruntime"):
            ratio = result.raw[name][0] / result.raw["packed"][0]
            assert result.ratios[f"packed_over_{name}"] == pytest.approx(ratio, abs=1e-4)

    def test_it_is_one_json_object_that_says_where_and_how(self, result: Benchmark) -> None:
        printed = json.loads(json.dumps(result.to_json(), allow_nan=False))
        assert {"hardware", "versions", "settings", "rounds", "raw", "ratios"} <= printed.keys()
        assert printed["hardware"]["threads"] == 1
        assert {"python", "torch", "transformers", "onnxruntime"} == printed["versions"].keys()
        assert (printed["settings"]["encoder"], printed["settings"]["weights"]) == (NAME, "random")
        assert printed["notes"]["tokens"] == sum(printed["notes"]["lengths"])

    def test_the_routes_were_compared(self, result: Benchmark) -> None:
        differences = result.notes["largest_difference"]
        assert differences.keys() == {"padded8", "single", "onnxruntime"}
        assert all(0 <= difference < 1e-5 for difference in differences.values())


@pytest.mark.parametrize(("precision", "change"), [("f32", 1e-3), ("bf16", 0.5)])
def test_routes_that_disagree_are_refused(
    short_sample: None, monkeypatch: pytest.MonkeyPatch, precision: Any, change: float
) -> None:
    random_transformer = library.random_transformer

    def perturbed(*arguments: Any) -> Any:
        model = random_transformer(*arguments)
        state = {
            name: tensor + change * torch.randn_like(tensor) for name, tensor in model.state_dict().items()
        }
        model.load_state_dict(state)
        return model

    monkeypatch.setattr(library, "random_transformer", perturbed)
    monkeypatch.setattr(encoders, "interleaved", lambda *_, **__: pytest.fail("timed all the same"))
    with pytest.raises(EncoderError, match=r"padded8 differs from our states by .* do not compute the same"):
        benchmark_encoders(NAME, rounds=1, seconds=0.001, precision=precision)


def test_half_precision_has_no_onnx_runtime(short_sample: None) -> None:
    result = benchmark_encoders(NAME, rounds=2, seconds=0.001, precision="bf16")
    assert result.ratios.keys() == {"packed_over_padded8", "packed_over_single", "matmul_fraction"}
    assert {len(timings) for timings in result.raw.values()} == {2}


def test_ratios_are_medians_of_interleaved_pairs(short_sample: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = {
        "packed": [1.0, 2.0, 4.0],
        "padded8": [3.0, 2.0, 8.0],  # 3, 1, 2: their median is 2; the medians' ratio would be 1.5
        "single": [1.0, 2.0, 40.0],
        "onnxruntime": [0.5, 1.0, 2.0],
        "matmul": [1.0, 1.0, 1.0],
        "prepacked_matmul": [0.5, 0.5, 0.5],
    }
    products = {name: (lambda: None, 8e6) for name in ("matmul", "prepacked_matmul")}
    monkeypatch.setattr(encoders, "_products", lambda _: products)
    monkeypatch.setattr(encoders, "interleaved", lambda *_, **__: made_up)
    monkeypatch.setattr(encoders.Subject, "flops", 4e6)
    result = benchmark_encoders(NAME, rounds=3, seconds=0.001)
    assert result.ratios == {
        "packed_over_padded8": 2.0,
        "packed_over_single": 1.0,
        "packed_over_onnxruntime": 0.5,
        "matmul_fraction": 0.25,  # 4, 2 and 1 of ours over 8 million a second
        "prepacked_matmul_fraction": 0.125,
    }
    assert result.raw is made_up


def test_a_median_ratio_is_of_pairs() -> None:
    assert median_ratio([3, 2, 8], [1, 2, 4]) == 2
    assert median_ratio([1, 4], [1, 2]) == 1.5
    with pytest.raises(ValueError):
        median_ratio([1, 2], [1])


def test_contestants_take_turns_and_what_is_left_on_the_device_counts() -> None:
    seen: list[str] = []

    def run(name: str) -> Callable[[], None]:
        return lambda: seen.append(name)

    raw = interleaved({"a": run("a"), "b": run("b")}, 3, finish=run("|"))
    assert "".join(seen) == "|" + "a|b|" + "b|a|" + "a|b|"
    assert {name: len(timings) for name, timings in raw.items()} == {"a": 3, "b": 3}


def test_flops_are_those_of_the_layers_and_of_attention(short_sample: None) -> None:
    choice = EncoderChoice(name=NAME, random_seed=0)
    subject = encoders._subject(choice, encoders._config(choice), "cpu", 1)
    layers = 2 * (4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32)
    lengths = [len(one) for one in subject.sample]
    attention = 2 * 2 * 2 * 32 * sum(length**2 for length in lengths)
    assert subject.flops == pytest.approx(2 * layers * sum(lengths) + attention)


def test_a_sample_has_long_and_short_ones_in_a_fixed_order() -> None:
    tokens = [Tokenized(np.zeros(length, np.int32)) for length in range(1, 101)]
    some = [len(one) for one in spread_over_lengths(tokens, 500, least=4)]
    assert some == [len(one) for one in spread_over_lengths(tokens, 500, least=4)]
    assert sorted(some) == [6, 17, 28, 39, 51, 62, 73, 84, 95]  # the middles of nine equal parts
    assert some != sorted(some)
    assert len(spread_over_lengths(tokens, 1, least=4)) == 4
    assert len(spread_over_lengths(tokens, 10**9, least=4)) == 100


@pytest.mark.parametrize("name", ["esm3", "esm2-tiny", "ntv2-50m-dna", "hf:lab/one"])
def test_an_encoder_without_a_library_model_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"no library model to compare '{name}' with; allowed: esm2-8m, "):
        benchmark_encoders(name)


def test_the_verb_refuses_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for option, value, told in (
        ("--encoder", "esm3", "allowed: esm2-8m"),
        ("--device", "cuda", "device 'cuda' is not there; allowed here: cpu"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["benchmark", "encoders", "--json", option, value])
        captured = capsys.readouterr()
        assert (ended.value.code, captured.out) == (2, "")
        assert told in captured.err.splitlines()[-1]


def test_the_verb_prints_one_json_object(short_sample: None, capsys: pytest.CaptureFixture[str]) -> None:
    main(["benchmark", "encoders", "--encoder", NAME, "--rounds", "1", "--seconds", "0.001", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert (printed["what"], printed["rounds"]) == ("encoders", 1)
    assert printed["ratios"].keys() >= LIBRARY


def test_no_round_is_begun_that_would_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "MOST_SECONDS", 0.0)
    raw = rounds.interleaved({"a": lambda: None}, 5, finish=lambda: None)
    assert len(raw["a"]) == 1
