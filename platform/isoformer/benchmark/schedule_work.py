"""The work of a run that nobody has prepared: shards of as many transcripts as asked for, like the sample's.

Each transcript of a shard is one of the shipped sample's, drawn at random; a transcript without a protein is
drawn with the paper's share of them. Counted, put in order and forecast as `embeddings.plan` does it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from isoformer.benchmark.sequences import sample
from isoformer.embeddings.config import EmbedConfig, EncoderJob, EncoderPass, encoder_passes
from isoformer.embeddings.forecast import forecast
from isoformer.embeddings.key import NUMPY_DTYPES
from isoformer.embeddings.plan import Plan, ShardWork, costliest_first
from isoformer.embeddings.profile import EncoderCost
from isoformer.embeddings.shard_file import ShardHeader
from isoformer.embeddings.shard_sequences import TranscriptsSource
from isoformer.embeddings.survey import estimated_tokens
from isoformer.embeddings.workload import Workload
from isoformer.encoders.resolution import positions_after
from isoformer.schema import Modality
from isoformer.storage import open_storage

# N sequences of the sample, S shards

ENCODERS: Final = ("enformer", "ntv2-250m-rna", "esm2-150m")
CODING: Final = 90_000 / 170_000
"""Of the paper's transcripts: so many have a protein."""
TRANSCRIPTS_A_SHARD: Final = 512
"""As many as `prepare` puts into one by default."""
_ROWS_AT_ONCE: Final = 1024
_MODALITIES: Final[tuple[Modality, ...]] = ("dna", "rna", "protein")


def paper_config(**given: Any) -> EmbedConfig:
    """The paper's three encoders at the default resolution; random weights, as a plan asks for a digest."""
    return EmbedConfig(encoders=tuple(EncoderJob(name=name, random_seed=0) for name in ENCODERS), **given)


@dataclass(frozen=True)
class Input:
    """So many transcripts, dealt into shards; the last one may be smaller in a real run, here none is."""

    transcripts: int
    transcripts_a_shard: int = TRANSCRIPTS_A_SHARD

    @property
    def shards(self) -> int:
        return -(-self.transcripts // self.transcripts_a_shard)

    def sequences_a_shard(self, modality: Modality) -> int:
        """Of each shard alike."""
        each = self.transcripts / self.shards
        return max(1, round(each * (CODING if modality == "protein" else 1)))


def made_plan(
    config: EmbedConfig, of: Input, costs: Sequence[EncoderCost | None], *, seed: int, root: str
) -> Plan:
    """A plan of a root where nothing is there yet. Nothing is read or written under `root`."""
    passes = encoder_passes(config, root)
    rng = np.random.default_rng(seed)
    work = [
        ShardWork(index, shard, _headers(encoder_pass, shard), load)
        for index, encoder_pass in enumerate(passes)
        for shard, load in enumerate(_loads(encoder_pass, of, rng))
    ]
    work = costliest_first(work, passes, costs)
    names = [each.name for each in passes]
    expected = forecast([(item.encoder, item.load) for item in work], costs, config.actors, None, names=names)
    return Plan(
        uri=root,
        fingerprint="made",
        encoders=[],
        forecast=expected,
        prices=[],
        passes=passes,
        costs=list(costs),
        work=work,
        present={},
        source=TranscriptsSource(open_storage(root), None, {}, None),
        shards=of.shards,
    )


def totals(planned: Plan) -> Mapping[str, Workload]:
    """What there is to do, by encoder."""
    return {
        encoder_pass.spec.name: sum(
            (item.load for item in planned.work if item.encoder == index), start=Workload()
        )
        for index, encoder_pass in enumerate(planned.passes)
    }


def _headers(encoder_pass: EncoderPass, shard: int) -> tuple[ShardHeader, ...]:
    return tuple(
        ShardHeader(
            key=dataset.key,
            modality=encoder_pass.spec.modality,
            width=dataset.spec.width,
            dtype=dataset.key.split(".")[-2],
            resolution=dataset.resolution,
            shard=shard,
            sequences_digest="",
        )
        for dataset in encoder_pass.datasets
    )


def _loads(encoder_pass: EncoderPass, of: Input, rng: np.random.Generator) -> list[Workload]:
    """Of each shard: the sums over sequences drawn from the sample."""
    spec = encoder_pass.spec
    tokens_N = estimated_tokens(spec, _letters()[spec.modality])
    columns_NC = np.stack(
        [tokens_N, tokens_N * np.minimum(tokens_N, spec.max_tokens), _bytes(encoder_pass, tokens_N)], axis=1
    )
    count, loads = of.sequences_a_shard(spec.modality), []
    for start in range(0, of.shards, _ROWS_AT_ONCE):
        shards = min(_ROWS_AT_ONCE, of.shards - start)
        sums_SC = columns_NC[rng.integers(len(tokens_N), size=(shards, count))].sum(axis=1)
        loads += [Workload(count, *sums) for sums in sums_SC.tolist()]
    return loads


def _bytes(encoder_pass: EncoderPass, tokens_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """What the datasets of a pass store of a sequence, uncompressed."""
    return np.array([
        sum(
            positions_after(int(tokens), dataset.resolution)
            * dataset.spec.width
            * NUMPY_DTYPES[dataset.key.split(".")[-2]].itemsize
            for dataset in encoder_pass.datasets
        )
        for tokens in tokens_N
    ], np.int64)  # fmt: skip


@cache
def _letters() -> Mapping[Modality, NDArray[np.int64]]:
    """Lengths in the shipped sample; a DNA window is as long as its encoder asks for."""
    proteins, rnas = sample()
    lengths = {"protein": proteins, "rna": rnas, "dna": rnas}
    return {each: np.array([len(one) for one in lengths[each]], np.int64) for each in _MODALITIES}
