"""`isoformer benchmark train`: what feeding the model costs, and what caching embeddings saves.

    loop     the real loop on a Ray Train worker, streaming embeddings from shards on a disk
    memory   the same steps of the same model over batches that are tensors in memory already
    cached   an epoch of the loop on an encoder's cached embeddings
    joint    an epoch of the loop with that encoder inside, tuned whole

`loop_over_memory` is of transcripts a second within an epoch, start-up, statistics and validation left out of
both; `startup_seconds` is what Ray Train takes before its first epoch. `cached_over_joint` is of an epoch's
seconds. Weights and values are random.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from isoformer.benchmark.rounds import Benchmark, in_turns, machine, median_ratio, versions
from isoformer.benchmark.train_inputs import POSITIONS, WIDTHS, made_shards, proteins_both_ways
from isoformer.encoders.registry import EncoderChoice
from isoformer.model import EncoderInside, ModelConfig
from isoformer.ray_session import RayConfig, ray_session
from isoformer.schema import Modality
from isoformer.storage import open_storage
from isoformer.training.config import TrainConfig
from isoformer.training.loop import fit, new_model
from isoformer.training.streaming import new_feed
from isoformer.training.train import train

if TYPE_CHECKING:
    from isoformer.training.data import PinnedDataset

SHARDS: Final = 12
TRANSCRIPTS_A_SHARD: Final = 60
EPOCHS: Final = 4
PROTEINS: Final = 24
RESOLUTION: Final = f"bins:{POSITIONS}"
WIDTH: Final = 256


@dataclass(frozen=True)
class Rate:
    """Transcripts a second of each epoch after the first, and seconds until the first began."""

    per_second: float
    startup_seconds: float = 0.0
    wait_share: float = 0.0


def benchmark_train(
    encoder: str = "esm2-35m",
    *,
    rounds: int = 3,
    shards: int = SHARDS,
    transcripts: int = TRANSCRIPTS_A_SHARD,
    proteins: int = PROTEINS,
) -> Benchmark:
    """Time the four contestants in `rounds` rounds, those of a ratio next to each other."""
    choice = EncoderChoice(name=encoder, random_seed=0)
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="isoformer-benchmark-") as root:
        data = made_shards(open_storage(root), shards=shards, transcripts=transcripts)
        config = _config(data)
        with ray_session(RayConfig()):
            feeding = in_turns(
                {"loop": _numbered(lambda turn: loop_rate(config, root, data, turn)),
                 "memory": lambda: memory_rate(config, data)},
                rounds,
            )  # fmt: skip
    inside, cached = proteins_both_ways(choice, proteins, RESOLUTION)
    joint = _protein_config(threads, EncoderInside(encoder=choice, resolution=RESOLUTION))
    plain = _protein_config(threads, None)
    fit(plain, cached)  # what is compiled or allocated once
    saving = in_turns(
        {"cached": lambda: epoch_seconds(plain, cached), "joint": lambda: epoch_seconds(joint, inside)},
        rounds,
    )
    return Benchmark(
        "train",
        settings={
            "encoder": f"{encoder}, random weights",
            "transcripts": len(data),
            "megabytes": round(len(data) * POSITIONS * sum(WIDTHS.values()) * 2 / 1e6),
            "batch_size": config.batch_size,
            "proteins": len(cached),
        },
        rounds=min(len(feeding["loop"]), len(saving["joint"])),
        raw={
            **{
                f"{name}: transcripts per second": [r.per_second for r in rates]
                for name, rates in feeding.items()
            },
            **{f"{name}: seconds an epoch": seconds for name, seconds in saving.items()},
            "loop: wait_share": [rate.wait_share for rate in feeding["loop"]],
            "loop: startup_seconds": [rate.startup_seconds for rate in feeding["loop"]],
        },
        ratios=ratios_of(feeding["loop"], feeding["memory"], saving["cached"], saving["joint"]),
        notes={"values": "random embeddings of three modalities; nothing is learned from them"},
        hardware=machine("cpu", threads),
        versions=versions("torch", "ray", "pyarrow", "numpy"),
    )


def ratios_of(
    loop: Sequence[Rate], memory: Sequence[Rate], cached: Sequence[float], joint: Sequence[float]
) -> dict[str, float]:
    """Medians over rounds; `cached_over_joint`: how many cached epochs fit into a joint one."""
    found = {
        "loop_over_memory": median_ratio([r.per_second for r in loop], [r.per_second for r in memory]),
        "cached_over_joint": median_ratio(joint, cached),
        "startup_seconds": median(rate.startup_seconds for rate in loop),
    }
    return {name: round(value, 4) for name, value in found.items()}


def loop_rate(config: TrainConfig, root: str, data: PinnedDataset, turn: int) -> Rate:
    """A whole run on Ray Train. The first epoch warms up the worker and is not counted."""
    began, first = time.perf_counter(), []

    def told(metrics: dict[str, float]) -> None:
        first.append(time.perf_counter() - began)

    result = train(config, root, run=f"turn-{turn}", data=data, progress=told)
    counted = result.history[1:]
    epoch_seconds = _training_rows(data) / result.history[0]["transcripts_per_second"]
    return Rate(
        median(epoch["transcripts_per_second"] for epoch in counted),
        startup_seconds=max(0.0, first[0] - epoch_seconds),
        wait_share=median(epoch["wait_share"] for epoch in counted),
    )


def memory_rate(config: TrainConfig, data: PinnedDataset) -> Rate:
    """The steps that a bare loop takes over batches that are tensors already, as many epochs."""
    feed = new_feed(data, config.model.modalities, torch.device("cpu"), config.stream_shards)
    rows = data.rows("train")
    batches = list(feed.batches(feed.order(rows, config.batch_size, seed=config.seed, epoch=0)))
    torch.manual_seed(config.seed)
    model = new_model(config, data).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0, fused=True)
    rates, threads = [], torch.get_num_threads()
    torch.set_num_threads(config.threads)
    for _ in range(config.epochs):
        started, total = time.perf_counter(), 0.0
        for batch in batches:
            optimizer.zero_grad(set_to_none=True)
            error_BK = model(batch.tokens) - model.standardise(batch.targets_BK)
            loss = error_BK.square()[batch.target_mask_BK].mean()
            torch.autograd.backward(loss)
            optimizer.step()
            total += float(loss.detach())
        rates.append(len(rows) / (time.perf_counter() - started))
    torch.set_num_threads(threads)
    return Rate(median(rates[1:]))


def epoch_seconds(config: TrainConfig, data: PinnedDataset) -> float:
    """Of one epoch's training steps."""
    return _training_rows(data) / fit(config, data).history[0]["transcripts_per_second"]


def _training_rows(data: PinnedDataset) -> int:
    return int(np.count_nonzero(data.split == "train"))


def _config(data: PinnedDataset) -> TrainConfig:
    model = ModelConfig(modalities=tuple(WIDTHS), width=WIDTH)
    return TrainConfig(
        keys=data.encoder_keys, model=model, epochs=EPOCHS, patience=EPOCHS, threads=1, data="streamed"
    )


def _protein_config(threads: int, inside: EncoderInside | None) -> TrainConfig:
    encoders: dict[Modality, EncoderInside] = {} if inside is None else {"protein": inside}
    model = ModelConfig(modalities=("protein",), encoders=encoders)
    return TrainConfig(model=model, epochs=1, threads=threads, batch_size=8)


def _numbered(function: Callable[[int], Rate]) -> Callable[[], Rate]:
    """Each call gets the next number: a run's folder is its own."""
    turns = iter(range(1_000_000))
    return lambda: function(next(turns))
