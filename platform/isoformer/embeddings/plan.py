"""What embedding will do, before it does anything: what is wanted, what is there, what the rest will cost.

In: a prepared dataset and an `EmbedConfig`. Out: a `Plan`: per encoder its distinct sequences,
duplicates saved, tokens, FLOPs, bytes and seconds, and the list of work. Resume is a set difference:
shards wanted less shards present whose footer carries the same key and the same digests; a footer that
differs is a FingerprintError. Called by `isoformer plan` and by `pipeline.embed`. Writes nothing but the
profile, and that only to calibrate.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from isoformer.embeddings.config import EmbedConfig, EncoderGroup, encoder_groups
from isoformer.embeddings.key import NUMPY_DTYPES, dataset_prefix
from isoformer.embeddings.profile import EncoderRate, Profile, calibrate, read_profile, write_profile
from isoformer.embeddings.shard_file import ShardHeader
from isoformer.embeddings.shard_sequences import (
    ShardSequences,
    TranscriptsSource,
    require_fit,
    shard_sequences,
    tokenise,
)
from isoformer.embeddings.store import ShardEntry, read_footer, require_same, sequences_digest, shard_entry
from isoformer.encoders.resolution import positions_after
from isoformer.encoders.spec import EncoderSpec
from isoformer.errors import EncoderError
from isoformer.manifest import Manifest, read_manifest
from isoformer.schema import Modality, shard_name
from isoformer.storage import Storage, open_storage

_FOOTER_THREADS: Final = 16
__all__ = ["EmbedConfig", "EncoderPlan", "Plan", "ShardWork", "plan"]


@dataclass(frozen=True)
class ShardWork:
    """A shard that an encoder still has to encode, for the datasets that lack it. `tokens` is an estimate."""

    encoder: int
    shard: int
    missing: tuple[ShardHeader, ...]
    sequences: int
    tokens: int


@dataclass(frozen=True)
class EncoderPlan:
    """One encoder's share. Totals are of the whole dataset; `missing_*` of what is still to be done."""

    name: str
    modality: Modality
    trained: str
    keys: dict[str, str]
    sequences: int
    duplicates_saved: int
    tokens: int
    shards_wanted: int
    shards_present: int
    missing_sequences: int
    missing_tokens: int
    missing_flops: float
    missing_bytes: int
    tokens_per_second: float | None
    measured_on: str | None


@dataclass(frozen=True)
class Plan:
    """`expected_seconds` is without start-up, and None where the speed of an encoder with work is unknown."""

    uri: str
    fingerprint: str
    encoders: list[EncoderPlan]
    expected_seconds: float | None
    startup_seconds: float | None
    unknown: list[str]
    groups: list[EncoderGroup]
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
            "expected_seconds": self.expected_seconds,
            "startup_seconds": self.startup_seconds,
            "unknown_speed": self.unknown,
        }


@dataclass(frozen=True)
class _Survey:
    """One encoder over all shards: the sequences, their estimated tokens, and the datasets' shard headers."""

    group: EncoderGroup
    shards: list[ShardSequences]
    tokens: list[NDArray[np.int64]]
    headers: dict[str, list[ShardHeader]]


def plan(config: EmbedConfig, root: str, *, calibrate_unknown: bool = False, nodes: int = 1) -> Plan:
    """What is left to do under `root`.

    `calibrate_unknown` loads each encoder whose speed is not known, runs it for two seconds here, and keeps
    the figure in the root's profile. StorageError where nothing is prepared, EncoderError where an encoder
    cannot read this dataset, FingerprintError where a shard made from something else is in the way.
    """
    storage = open_storage(root)
    manifest = read_manifest(storage)
    source = TranscriptsSource.of(storage, manifest, config.cache_dir)
    surveys = [_survey(storage, manifest, group) for group in encoder_groups(config, root)]
    present = {
        headers[0].key: _present(storage, headers)
        for survey in surveys
        for headers in survey.headers.values()
    }
    work = [item for index, survey in enumerate(surveys) for item in _missing(index, survey, present)]
    work.sort(key=lambda item: (item.encoder, -item.tokens, item.shard))
    profile = read_profile(storage)
    threads = config.threads(nodes)
    if calibrate_unknown:
        profile = _calibrated(profile, config, source, surveys, work, threads)
        write_profile(storage, profile)
    rates = [profile.rate(survey.group.name, config.device, threads) for survey in surveys]
    encoders = [
        _encoder_plan(survey, [item for item in work if item.encoder == index], present, rates[index])
        for index, survey in enumerate(surveys)
    ]
    return Plan(
        uri=storage.uri,
        fingerprint=manifest.fingerprint,
        encoders=encoders,
        expected_seconds=_makespan(work, rates, config.actors),
        startup_seconds=profile.startup_seconds,
        unknown=sorted({surveys[item.encoder].group.name for item in work if rates[item.encoder] is None}),
        groups=[survey.group for survey in surveys],
        work=work,
        present=present,
        source=source,
        shards=len(manifest.shards),
    )


def _survey(storage: Storage, manifest: Manifest, group: EncoderGroup) -> _Survey:
    require_fit(group.spec, manifest.window_bases, storage.uri)
    shards = [shard_sequences(storage, shard, group.spec) for shard in range(len(manifest.shards))]
    if not any(shard.digests for shard in shards):
        raise EncoderError(
            f"{group.spec.name} reads {group.spec.modality} sequences, but {storage.uri} has none of them"
        )
    tokens = [_estimated_tokens(group.spec, shard.letters) for shard in shards]
    headers = {
        resolution: [
            ShardHeader(
                key=key,
                modality=group.spec.modality,
                width=group.spec.width,
                dtype=key.split(".")[-2],
                resolution=resolution,
                shard=index,
                transcripts_digest=manifest.shards[index].digest,
                sequences_digest=sequences_digest(shard.digests),
            )
            for index, shard in enumerate(shards)
        ]
        for resolution, key in group.keys.items()
    }
    return _Survey(group, shards, tokens, headers)


def _estimated_tokens(spec: EncoderSpec, letters: NDArray[np.int64]) -> NDArray[np.int64]:
    tokens = np.ceil(letters / spec.letters_per_token).astype(np.int64)
    return tokens if spec.reads_windows else np.minimum(tokens, spec.max_tokens)


def _present(storage: Storage, headers: Sequence[ShardHeader]) -> dict[int, ShardEntry]:
    """Shards that are there and are what they should be; the listing only says where to look."""
    prefix = dataset_prefix(headers[0].modality, headers[0].key)
    listed = set(storage.list(prefix))
    wanted = [header for header in headers if prefix + shard_name(header.shard) in listed]

    def entry(header: ShardHeader) -> ShardEntry:
        path = prefix + shard_name(header.shard)
        footer = read_footer(storage, path)
        require_same(footer, header, f"{storage.uri}/{path}")
        return shard_entry(storage, path, footer)

    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        return dict(zip((header.shard for header in wanted), pool.map(entry, wanted), strict=True))


def _missing(index: int, survey: _Survey, present: dict[str, dict[int, ShardEntry]]) -> list[ShardWork]:
    work = []
    for shard, sequences in enumerate(survey.shards):
        headers = [headers[shard] for headers in survey.headers.values()]
        missing = tuple(header for header in headers if shard not in present[header.key])
        if missing:
            tokens = int(survey.tokens[shard].sum())
            work.append(ShardWork(index, shard, missing, len(sequences.digests), tokens))
    return work


def _encoder_plan(
    survey: _Survey,
    work: Sequence[ShardWork],
    present: dict[str, dict[int, ShardEntry]],
    rate: EncoderRate | None,
) -> EncoderPlan:
    spec = survey.group.spec
    return EncoderPlan(
        name=survey.group.name,
        modality=spec.modality,
        trained=spec.trained,
        keys=survey.group.keys,
        sequences=sum(len(shard.digests) for shard in survey.shards),
        duplicates_saved=sum(shard.duplicates for shard in survey.shards),
        tokens=sum(int(tokens.sum()) for tokens in survey.tokens),
        shards_wanted=len(survey.shards) * len(survey.group.keys),
        shards_present=sum(len(present[key]) for key in survey.group.keys.values()),
        missing_sequences=sum(item.sequences for item in work),
        missing_tokens=sum(item.tokens for item in work),
        missing_flops=sum(spec.flops(item.tokens) for item in work),
        missing_bytes=sum(_bytes(survey, item) for item in work),
        tokens_per_second=rate.tokens_per_second if rate else None,
        measured_on=rate.hardware if rate else None,
    )


def _bytes(survey: _Survey, work: ShardWork) -> int:
    spec, tokens = survey.group.spec, survey.tokens[work.shard]
    return sum(
        positions_after(int(count), header.resolution) * spec.width * NUMPY_DTYPES[header.dtype].itemsize
        for header in work.missing
        for count in tokens
    )


def _makespan(work: Sequence[ShardWork], rates: Sequence[EncoderRate | None], actors: int) -> float | None:
    """Seconds until the last of `actors` is done when each takes the next shard as it gets free."""
    free_at = [0.0] * actors
    for item in work:
        rate = rates[item.encoder]
        if rate is None:
            return None
        heapq.heapreplace(free_at, free_at[0] + item.tokens / rate.tokens_per_second)
    return max(free_at)


def _calibrated(
    profile: Profile,
    config: EmbedConfig,
    source: TranscriptsSource,
    surveys: Sequence[_Survey],
    work: Sequence[ShardWork],
    threads: int,
) -> Profile:
    """A profile that knows every encoder with work, measured here and now."""
    for index, survey in enumerate(surveys):
        group = survey.group
        mine = [item for item in work if item.encoder == index and item.sequences]
        if mine and profile.rate(group.name, config.device, threads) is None:
            sample = tokenise(source, mine[0].shard, group.choice)
            if sample.digests:
                rate = calibrate(config, group, sample, threads)
                profile = profile.with_rate(group.name, config.device, threads, rate)
    return profile
