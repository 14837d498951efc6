"""What embedding will do, before it does anything: what is wanted, what is there, what the rest will cost.

In: a prepared dataset and an `EmbedConfig`. Out: a `Plan`: per encoder pass its distinct sequences,
duplicates saved, tokens, padding avoided, FLOPs, bytes and seconds; the list of work, costliest first; a
forecast of the whole. Resume is a set difference: shards wanted less shards present whose footer carries
the same key and the same digests; a footer that differs is a FingerprintError. Where shards of earlier
transcripts are still there, sequences that they hold are copied and not encoded again. Called by
`isoformer plan` and by `pipeline.embed`. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from isoformer.embeddings.config import EmbedConfig, EmbeddingSpec, EncoderPass, encoder_passes
from isoformer.embeddings.forecast import Forecast, NodeCost, costs_by_price, forecast
from isoformer.embeddings.key import NUMPY_DTYPES, dataset_prefix
from isoformer.embeddings.profile import EncoderCost, read_profile
from isoformer.embeddings.shard_file import ShardHeader
from isoformer.embeddings.shard_sequences import (
    ShardSequences,
    TranscriptsSource,
    require_fit,
    shard_sequences,
)
from isoformer.embeddings.store import ShardEntry, digests_of, is_shard_key, present_entry, shard_key
from isoformer.embeddings.survey import READERS, ShardSurvey, survey, surveys
from isoformer.embeddings.workload import Workload
from isoformer.errors import EncoderError
from isoformer.manifest import read_manifest
from isoformer.schema import Modality
from isoformer.storage import Storage, open_storage

__all__ = ["EmbedConfig", "EncoderPlan", "Plan", "ShardWork", "plan"]


@dataclass(frozen=True)
class ShardWork:
    """A shard that an encoder still has to encode, for the datasets that lack it.

    `load` is an estimate of what is to be encoded; `reuse`: dataset key → earlier shard → the digests whose
    rows are copied from it, `reused` sequences in all.
    """

    encoder: int
    shard: int
    missing: tuple[ShardHeader, ...]
    load: Workload
    reuse: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    reused: int = 0

    @property
    def name(self) -> tuple[int, int]:
        return self.encoder, self.shard


@dataclass(frozen=True)
class EncoderPlan:
    """One encoder pass. Totals are of the whole dataset; `missing_*` of what is still to be done.

    `padding_avoided`: the part of the tokens that batches of eight, padded, would add. `tokens_per_second` is
    of one actor, for what is missing (for everything, where nothing is).
    """

    name: str
    modality: Modality
    trained: str
    keys: list[str]
    sequences: int
    duplicates_saved: int
    tokens: int
    padding_avoided: float
    shards_wanted: int
    shards_present: int
    missing_sequences: int
    reused_sequences: int
    missing_tokens: int
    missing_flops: float
    missing_bytes: int
    missing_seconds: float | None
    tokens_per_second: float | None
    measured_on: str | None


@dataclass(frozen=True)
class Plan:
    """`forecast.seconds` is without start-up, and None where the speed of an encoder with work is unknown."""

    uri: str
    fingerprint: str
    encoders: list[EncoderPlan]
    forecast: Forecast
    prices: list[NodeCost]
    passes: list[EncoderPass]
    costs: list[EncoderCost | None]
    work: list[ShardWork]
    present: dict[str, dict[int, ShardEntry]]
    source: TranscriptsSource
    shards: int

    def summary(self) -> dict[str, Any]:
        """The figures, without the list of work: for JSON and for the command line."""
        return {
            "uri": self.uri,
            "transcripts_fingerprint": self.fingerprint,
            "encoders": [asdict(encoder) for encoder in self.encoders],
            "forecast": asdict(self.forecast) | {"hours": self.forecast.hours},
            "prices": [asdict(price) for price in self.prices],
        }


def plan(config: EmbedConfig, root: str, *, nodes: int = 1) -> Plan:
    """What is left to do under `root`.

    StorageError where nothing is prepared, EncoderError where an encoder cannot read this dataset,
    FingerprintError where a shard made from something else is in the way.
    """
    return plan_on(open_storage(root), config, root, nodes=nodes)


def plan_on(storage: Storage, config: EmbedConfig, root: str, *, nodes: int = 1) -> Plan:
    """The same where the storage under `root` has been opened."""
    manifest = read_manifest(storage)
    passes = encoder_passes(config, root)
    for encoder_pass in passes:
        require_fit(encoder_pass.spec, manifest.window_bases, storage.uri)
    by_shard = list(surveys(storage, range(len(manifest.shards)), passes))
    profile = read_profile(storage)
    costs = [profile.cost(each.name, config.device, config.threads(nodes)) for each in passes]
    work: list[ShardWork] = []
    present: dict[str, dict[int, ShardEntry]] = {}
    encoders: list[EncoderPlan] = []
    for index, encoder_pass in enumerate(passes):
        mine = [of_shard[index] for of_shard in by_shard]
        _require_sequences(encoder_pass, mine, storage.uri)
        headers = {dataset.key: _headers(encoder_pass, dataset, mine) for dataset in encoder_pass.datasets}
        there = {key: _Present.of(storage, listed) for key, listed in headers.items()}
        present |= {key: found.entries for key, found in there.items()}
        missing = _missing(storage, index, encoder_pass, mine, headers, there)
        work += missing
        encoders.append(_encoder_plan(encoder_pass, mine, missing, present, costs[index]))
    work = costliest_first(work, passes, costs)
    expected = forecast(
        [(item.encoder, item.load) for item in work],
        costs,
        config.actors,
        profile.startup_seconds,
        names=[each.name for each in passes],
    )
    measured_on = {cost.hardware for cost in (costs[item.encoder] for item in work) if cost is not None}
    return Plan(
        uri=storage.uri,
        fingerprint=manifest.fingerprint,
        encoders=encoders,
        forecast=expected,
        prices=costs_by_price(expected, config.prices, measured_on),
        passes=passes,
        costs=costs,
        work=work,
        present=present,
        source=TranscriptsSource.of(storage, manifest, config.cache_dir),
        shards=len(manifest.shards),
    )


@dataclass(frozen=True)
class _Present:
    """Of one dataset: shards that are there and are what they should be, and the paths of earlier ones."""

    entries: dict[int, ShardEntry]
    earlier: list[str]

    @classmethod
    def of(cls, storage: Storage, headers: Sequence[ShardHeader]) -> _Present:
        """The listing only says where to look."""
        wanted = {shard_key(header): header for header in headers}
        prefix = dataset_prefix(headers[0].modality, headers[0].key)
        listed = [path for path in storage.list(prefix) if path.endswith(".parquet")]
        found = [wanted[path] for path in listed if path in wanted]
        with ThreadPoolExecutor(READERS) as pool:
            entries = pool.map(lambda header: present_entry(storage, header), found)
            there = dict(zip((header.shard for header in found), entries, strict=True))
        return cls(there, [path for path in listed if path not in wanted and is_shard_key(path)])


def _require_sequences(encoder_pass: EncoderPass, of_shards: Sequence[ShardSurvey], uri: str) -> None:
    spec = encoder_pass.spec
    if not any(of_shard.sequences for of_shard in of_shards):
        raise EncoderError(f"{spec.name} reads {spec.modality} sequences, but {uri} has none of them")


def _headers(
    encoder_pass: EncoderPass, dataset: EmbeddingSpec, of_shards: Sequence[ShardSurvey]
) -> list[ShardHeader]:
    return [
        ShardHeader(
            key=dataset.key,
            modality=encoder_pass.spec.modality,
            width=dataset.spec.width,
            dtype=dataset.key.split(".")[-2],
            resolution=dataset.resolution,
            shard=shard,
            sequences_digest=of_shard.sequences_digest,
        )
        for shard, of_shard in enumerate(of_shards)
    ]


def _missing(
    storage: Storage,
    index: int,
    encoder_pass: EncoderPass,
    of_shards: Sequence[ShardSurvey],
    headers: Mapping[str, Sequence[ShardHeader]],
    there: Mapping[str, _Present],
) -> list[ShardWork]:
    work = []
    for shard, of_shard in enumerate(of_shards):
        missing = tuple(headers[key][shard] for key in headers if shard not in there[key].entries)
        if missing:
            work.append(ShardWork(index, shard, missing, _with_bytes(of_shard, of_shard.load, missing)))
    if not any(found.earlier for found in there.values()):
        return work
    with ThreadPoolExecutor(READERS) as pool:
        held = {
            key: _digests_held(pool, storage, headers[key][0], found.earlier) for key, found in there.items()
        }
        return list(pool.map(lambda item: _with_reuse(storage, item, encoder_pass, held), work))


def _digests_held(
    pool: Executor, storage: Storage, wanted: ShardHeader, paths: Sequence[str]
) -> dict[str, str]:
    """Digest → the earlier shard that holds its row; reads the digests alone."""
    listed = pool.map(lambda path: digests_of(storage, path, wanted), paths)
    return {digest: path for path, held in zip(paths, listed, strict=True) for digest in held}


def _with_reuse(
    storage: Storage, work: ShardWork, encoder_pass: EncoderPass, held: Mapping[str, Mapping[str, str]]
) -> ShardWork:
    """A sequence is copied where every dataset that is missing has its row, and encoded otherwise."""
    sequences: ShardSequences = shard_sequences(storage, work.shard, encoder_pass.spec.modality)
    keys = [header.key for header in work.missing]
    already = {digest for digest in sequences.digests if all(digest in held[key] for key in keys)}
    if not already:
        return work
    left = survey(sequences, encoder_pass, already)
    return replace(
        work,
        load=_with_bytes(left, left.load, work.missing),
        reuse={key: _by_path(held[key], already) for key in keys},
        reused=len(already),
    )


def _by_path(held: Mapping[str, str], digests: Iterable[str]) -> dict[str, list[str]]:
    paths: dict[str, list[str]] = {}
    for digest in sorted(digests):
        paths.setdefault(held[digest], []).append(digest)
    return paths


def _with_bytes(of_shard: ShardSurvey, load: Workload, missing: Sequence[ShardHeader]) -> Workload:
    size_bytes = sum(
        of_shard.positions[header.resolution] * header.width * NUMPY_DTYPES[header.dtype].itemsize
        for header in missing
    )
    return replace(load, output_bytes=size_bytes)


def costliest_first(
    work: Sequence[ShardWork], passes: Sequence[EncoderPass], costs: Sequence[EncoderCost | None]
) -> list[ShardWork]:
    """An encoder at a time, so that actors seldom load one; long first, so that the last shards are small."""

    def cost(item: ShardWork) -> float:
        known = costs[item.encoder]
        if known is not None and None not in costs:
            return known.seconds(item.load)
        return passes[item.encoder].spec.flops(item.load.tokens, item.load.token_pairs)

    of_work = {item.name: cost(item) for item in work}
    largest = [
        max((of_work[item.name] for item in work if item.encoder == index), default=0.0)
        for index in range(len(passes))
    ]
    return sorted(
        work, key=lambda item: (-largest[item.encoder], item.encoder, -of_work[item.name], item.shard)
    )


def _encoder_plan(
    encoder_pass: EncoderPass,
    of_shards: Sequence[ShardSurvey],
    work: Sequence[ShardWork],
    present: Mapping[str, Mapping[int, ShardEntry]],
    cost: EncoderCost | None,
) -> EncoderPlan:
    spec, keys = encoder_pass.spec, encoder_pass.keys
    tokens = sum(of_shard.tokens for of_shard in of_shards)
    missing = sum((item.load for item in work), Workload())
    loads = [item.load for item in work] or [of_shard.load for of_shard in of_shards]
    seconds = sum(cost.seconds(load) for load in loads) if cost else None
    return EncoderPlan(
        name=encoder_pass.name,
        modality=spec.modality,
        trained=spec.trained,
        keys=keys,
        sequences=sum(of_shard.sequences for of_shard in of_shards),
        duplicates_saved=sum(of_shard.duplicates for of_shard in of_shards),
        tokens=tokens,
        padding_avoided=1 - tokens / sum(of_shard.padded_tokens for of_shard in of_shards),
        shards_wanted=len(of_shards) * len(keys),
        shards_present=sum(len(present[key]) for key in keys),
        missing_sequences=missing.sequences,
        reused_sequences=sum(item.reused for item in work),
        missing_tokens=missing.tokens,
        missing_flops=spec.flops(missing.tokens, missing.token_pairs),
        missing_bytes=missing.output_bytes,
        missing_seconds=(seconds if work else 0.0) if cost else None,
        tokens_per_second=sum(load.tokens for load in loads) / seconds if seconds else None,
        measured_on=cost.hardware if cost else None,
    )
