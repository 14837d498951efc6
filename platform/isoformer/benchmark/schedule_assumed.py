"""What the simulated GPUs, nodes and storage are taken to do. Assumed, by the sources named; not measured.

Only tokenising is measured, on this processor: the real tokenizers on sequences of real lengths.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from isoformer.benchmark.schedule_work import ENCODERS
from isoformer.embeddings.config import EncoderPass
from isoformer.embeddings.profile import EncoderCost
from isoformer.encoders.registry import EncoderChoice, get_spec, load_tokenizer
from isoformer.encoders.spec import EncoderSpec
from isoformer.sequences import sequence_digest

_LETTERS: Final = {"dna": "ACGT", "rna": "ACGT", "protein": "ACDEFGHIKLMNPQRSTVWY"}
_TYPICAL_LETTERS: Final = {"rna": 3000, "protein": 450}
_TOKENISE_SECONDS: Final = 0.3
"""Spent on timing each tokenizer."""


@dataclass(frozen=True)
class Assumed:
    """One A100 and what is around it.

    `peak_flops`: dense bf16, NVIDIA's data sheet. `language_utilisation`: ESM-2 650M has been reported at
    about 100,000 real tokens a second with packed attention, which is 0.44 of the peak.
    `enformer_utilisation`: no figure is known; half of it. `dollars_per_gpu_hour`: an eighth of a
    p4d.24xlarge on demand, 32.77 $; `spot_dollars_per_gpu_hour`: of 12.10 $. `node_losses_per_hour`: far
    above what spot sees, so that it shows. `request_seconds`: AWS says 100 to 200 ms for small objects.
    `puts_per_second`, `gets_per_second`: of one prefix, AWS.
    """

    peak_flops: float = 312e12
    language_utilisation: float = 0.40
    enformer_utilisation: float = 0.20
    dollars_per_gpu_hour: float = 4.10
    spot_dollars_per_gpu_hour: float = 1.51
    gpus_per_node: int = 8
    node_start_seconds: float = 180.0
    process_start_seconds: float = 40.0
    load_seconds: float = 20.0
    request_seconds: float = 0.15
    publish_bytes_per_second: float = 200e6
    shard_spread: float = 0.2
    worker_spread: float = 0.2
    node_losses_per_hour: float = 1.0
    puts_per_second: float = 3500.0
    gets_per_second: float = 5500.0
    dollars_per_1000_puts: float = 0.005
    dollars_per_1000_gets: float = 0.0004


ASSUMED: Final = Assumed()


def costs_on_gpu(passes: Sequence[EncoderPass], assumed: Assumed) -> list[EncoderCost]:
    """By floating-point operations alone."""
    return [_cost(encoder_pass.spec, assumed) for encoder_pass in passes]


def tokenise_seconds() -> tuple[float, ...]:
    """Of each of the paper's encoders, a token: measured here, the digest over a window included."""
    return tuple(_tokenise_seconds(EncoderChoice(name=name, random_seed=0)) for name in ENCODERS)


def _cost(spec: EncoderSpec, assumed: Assumed) -> EncoderCost:
    is_enformer = spec.name.startswith("enformer")
    utilisation = assumed.enformer_utilisation if is_enformer else assumed.language_utilisation
    per_second = utilisation * assumed.peak_flops
    return EncoderCost(
        load_seconds=assumed.load_seconds,
        seconds_per_shard=0.0,
        seconds_per_sequence=0.0,
        seconds_per_token=spec.flops(1) / per_second,
        seconds_per_token_pair=spec.flops(0, 1) / per_second,
        hardware="assumed A100",
        tokens=0,
    )


def _tokenise_seconds(choice: EncoderChoice) -> float:
    spec, tokenizer = get_spec(choice), load_tokenizer(choice)
    count = sum(spec.window_bases) if spec.window_bases else _TYPICAL_LETTERS[spec.modality]
    letters = np.random.default_rng(0).choice(list(_LETTERS[spec.modality]), count)
    sequence, began, times = "".join(letters), time.process_time(), 0
    while time.process_time() - began < _TOKENISE_SECONDS:
        sequence_digest(sequence)
        tokenizer(sequence)
        times += 1
    return (time.process_time() - began) / times / (count / spec.letters_per_token)
