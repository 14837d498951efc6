"""`isoformer benchmark encoders`: our packed forward against what a user would run otherwise.

Same weights (random, of a published size), same sequences of real lengths, same threads, in one process:

    packed       our encoder on packs of a token budget, long sequences first, as the embedding engine does
    padded8      the library's model on batches of 8, padded, in an order that knows no lengths
    single       the library's model, one sequence at a time
    onnxruntime  the library's model exported to ONNX, one sequence at a time (CPU only)
    matmul       plain matrix products of the encoder's shapes, beside them: torch.mm, and oneDNN's prepacked
                 kernels, which some processors run at more than twice the rate

`matmul_fraction` is of torch.mm's rate, `prepacked_matmul_fraction` of the faster kernels'. Every route's
states are compared before anything is timed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, cast

import numpy as np
import torch
from torch import Tensor
from transformers import EsmModel

from isoformer.benchmark.library import library_model
from isoformer.benchmark.onnx_runtime import onnx_runtime
from isoformer.benchmark.rounds import Benchmark, interleaved, machine, median_ratio, versions
from isoformer.benchmark.sequences import (
    protein_and_rna_tokens,
    spread_over_lengths,
    token_budget_packs,
)
from isoformer.embeddings.config import CPU_BUDGET_TOKENS, GPU_BUDGET_TOKENS
from isoformer.encoders import prepacked
from isoformer.encoders.catalogue import PUBLISHED
from isoformer.encoders.esm2 import PAD_ID
from isoformer.encoders.packed_encoder import DTYPES, PackedEncoder
from isoformer.encoders.registry import EncoderChoice, Precision, load_encoder
from isoformer.encoders.spec import Tokenized, pack
from isoformer.encoders.transformer_config import TransformerConfig, transformer_config
from isoformer.errors import ConfigError, EncoderError

DEFAULT_ENCODER: Final = "esm2-35m"
_SEED: Final = 0
_BATCH: Final = 8
_LEAST_SEQUENCES: Final = 2 * _BATCH
_AGREEMENT: Final = {"f32": 1e-4, "bf16": 0.1, "f16": 0.02}
"""Largest difference from the library's states that is taken for the same model, relative to their norm."""
_ASSUMED_FLOPS_PER_SECOND: Final = {"cpu": 50e9, "cuda": 100e12}
"""Only to choose how many sequences there are."""
_PRODUCT_TOKENS: Final = 1024
_PRODUCT_REPEATS: Final = 20

Run = Callable[[], object]
States = Callable[[Tokenized], Tensor]


@dataclass(frozen=True)
class Subject:
    """One encoder, the library's model with the same weights, and the sequences."""

    choice: EncoderChoice
    config: TransformerConfig
    encoder: PackedEncoder
    library: EsmModel
    sample: list[Tokenized]
    device: str

    @property
    def budget_tokens(self) -> int:
        return CPU_BUDGET_TOKENS if self.device == "cpu" else GPU_BUDGET_TOKENS

    @property
    def flops(self) -> float:
        """Of one pass over the sample: products of the layers and of attention."""
        lengths = [len(one) for one in self.sample]
        attention = sum(self.config.attention_flops(length) for length in lengths)
        return self.config.flops_per_token * sum(lengths) + attention


def benchmark_encoders(
    encoder: str = DEFAULT_ENCODER,
    *,
    rounds: int = 4,
    seconds: float = 4.0,
    threads: int = 1,
    device: str = "cpu",
    precision: Precision = "f32",
) -> Benchmark:
    """Time every route in `rounds` rounds; a pass of ours takes about `seconds` on a slow machine.

    ConfigError for an encoder that the library has no model of and for a device that is not there;
    EncoderError where the routes disagree.
    """
    if device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"benchmark encoders: device {device!r} is not there; allowed here: cpu")
    choice = EncoderChoice(name=encoder, random_seed=_SEED, precision=precision)
    config = _config(choice)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        flops = seconds * threads * _ASSUMED_FLOPS_PER_SECOND[torch.device(device).type]
        subject = _subject(choice, config, device, int(flops / config.flops_per_token))
        with torch.inference_mode(), tempfile.TemporaryDirectory(prefix="isoformer-benchmark-") as folder:
            return _measured(subject, rounds, seconds, threads, Path(folder))
    finally:
        torch.set_num_threads(threads_before)


def _measured(subject: Subject, rounds: int, seconds: float, threads: int, folder: Path) -> Benchmark:
    routes = _library_routes(subject, threads, folder)
    differences = {name: _difference(subject, states) for name, (_, states) in routes.items()}
    _require_agreement(differences, subject.choice.precision)
    lengths = [len(one) for one in subject.sample]
    packs = token_budget_packs(lengths, subject.budget_tokens)
    products = _products(subject)

    def packed() -> None:
        for members in packs:
            subject.encoder.encode(pack([subject.sample[place] for place in members]))

    for run in (packed, *(run for run, _ in products.values())):  # the other routes are warm already
        run()
    raw = interleaved(
        {
            "packed": packed,
            **{name: run for name, (run, _) in routes.items()},
            **{name: run for name, (run, _) in products.items()},
        },
        rounds,
        finish=torch.cuda.synchronize if subject.device.startswith("cuda") else _nothing_left,
    )
    ours = [subject.flops / taken for taken in raw["packed"]]
    rates = {name: [flops / taken for taken in raw[name]] for name, (_, flops) in products.items()}
    ratios = {f"packed_over_{name}": median_ratio(raw[name], raw["packed"]) for name in routes}
    ratios |= {f"{name}_fraction": median_ratio(ours, rate) for name, rate in rates.items()}
    return Benchmark(
        "encoders",
        settings={
            "encoder": subject.choice.name,
            "weights": "random",
            "precision": subject.choice.precision,
            "token_budget": subject.budget_tokens,
            "padded_batch": _BATCH,
            "device": subject.device,
            "threads": threads,
            "seconds": seconds,
        },
        rounds=len(raw["packed"]),
        raw=raw,
        ratios={name: round(value, 4) for name, value in ratios.items()},
        notes={
            "route": subject.encoder.route,
            "sequences": len(lengths),
            "tokens": sum(lengths),
            "lengths": lengths,
            "tokens_per_second": {
                name: round(sum(lengths) / median(raw[name])) for name in ("packed", *routes)
            },
            "gflops_per_second": {
                name: round(median(rate) / 1e9, 1) for name, rate in {"packed": ours, **rates}.items()
            },
            "largest_difference": differences,
        },
        hardware=machine(subject.device, threads),
        versions=versions("torch", "transformers", *(["onnxruntime"] if "onnxruntime" in routes else [])),
    )


def _nothing_left() -> None:
    """A CPU is done when it returns."""


def _config(choice: EncoderChoice) -> TransformerConfig:
    allowed = [name for name, entry in PUBLISHED.items() if entry.module.endswith(".esm2")]
    if choice.name not in allowed:
        raise ConfigError(
            f"benchmark encoders: no library model to compare {choice.name!r} with; "
            f"allowed: {', '.join(allowed)}"
        )
    return transformer_config(PUBLISHED[choice.name].config, gated_feed_forward=False, file=choice.name)


def _subject(choice: EncoderChoice, config: TransformerConfig, device: str, tokens: int) -> Subject:
    encoder = cast(PackedEncoder, load_encoder(choice, device))
    sample = spread_over_lengths(protein_and_rna_tokens(choice, encoder.spec), tokens, least=_LEAST_SEQUENCES)
    return Subject(choice, config, encoder, library_model(choice, device), sample, device)


def _library_routes(subject: Subject, threads: int, folder: Path) -> dict[str, tuple[Run, States]]:
    """Name → the timed pass over the sample, and the states of one sequence by that route."""
    sample, batches = subject.sample, list(_batches(subject.sample))
    routes: dict[str, tuple[Run, States]] = {
        "padded8": (
            lambda: [_library(subject, batch) for batch in batches],
            lambda one: _library(subject, [*batches[0], one])[-1, : len(one)],
        ),
        "single": (
            lambda: [_library(subject, [one]) for one in sample],
            lambda one: _library(subject, [one])[0],
        ),
    }
    if subject.device == "cpu" and subject.choice.precision == "f32":
        run = onnx_runtime(subject.library, threads, folder)
        routes["onnxruntime"] = (lambda: [run(one) for one in sample], lambda one: torch.from_numpy(run(one)))
    return routes


def _library(subject: Subject, batch: Sequence[Tokenized]) -> Tensor:
    """(B, L, D), padded on the right."""
    ids = np.full((len(batch), max(map(len, batch))), PAD_ID, np.int64)
    for row, one in enumerate(batch):
        ids[row, : len(one)] = one.token_ids
    ids_BL = torch.from_numpy(ids).to(subject.device)
    return subject.library(ids_BL, attention_mask=(ids_BL != PAD_ID).long()).last_hidden_state


def _difference(subject: Subject, states: States) -> float:
    """The largest over positions of |theirs - ours| / |ours|, for the longest and the shortest sequence."""
    worst = 0.0
    for one in (max(subject.sample, key=len), min(subject.sample, key=len)):
        ours = subject.encoder.encode(pack([one])).hidden_PD
        theirs = states(one)[1:-1].float()  # <cls> and <eos> are no positions
        worst = max(worst, float(((theirs - ours).norm(dim=1) / ours.norm(dim=1)).max()))
    return worst


def _require_agreement(differences: dict[str, float], precision: Precision) -> None:
    for name, difference in differences.items():
        if not difference <= _AGREEMENT[precision]:
            raise EncoderError(
                f"benchmark encoders: {name} differs from our states by {difference:.1e}, more than "
                f"{_AGREEMENT[precision]}: the routes do not compute the same model"
            )


def _batches(sample: Sequence[Tokenized]) -> Iterator[list[Tokenized]]:
    for start in range(0, len(sample), _BATCH):
        yield list(sample[start : start + _BATCH])


def _products(subject: Subject) -> dict[str, tuple[Run, float]]:
    """Name → a run of plain matrix products of the layers' shapes, and its floating-point operations."""
    width, inner = subject.config.hidden_size, subject.config.intermediate_size
    dtype = DTYPES[subject.choice.precision]
    shapes = [(width, width)] * 4 + [(inner, width), (width, inner)]
    pairs = [(torch.randn(_PRODUCT_TOKENS, columns), torch.randn(rows, columns)) for rows, columns in shapes]
    flops = _PRODUCT_REPEATS * sum(2.0 * _PRODUCT_TOKENS * rows * columns for rows, columns in shapes)
    on_device = [(x.to(subject.device, dtype), w.to(subject.device, dtype).T) for x, w in pairs]
    runs: dict[str, tuple[Run, float]] = {"matmul": (partial(_multiply, on_device), flops)}
    if subject.device == "cpu" and dtype == torch.float32 and prepacked.is_available():
        laid_out = [(x, prepacked.Product(w, None)) for x, w in pairs]
        runs["prepacked_matmul"] = (partial(_multiply_prepacked, laid_out), flops)
    return runs


def _multiply(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    for _ in range(_PRODUCT_REPEATS):
        for inputs, weight in pairs:
            torch.mm(inputs, weight)


def _multiply_prepacked(pairs: Sequence[tuple[Tensor, prepacked.Product]]) -> None:
    for _ in range(_PRODUCT_REPEATS):
        for inputs, product in pairs:
            product(inputs)
