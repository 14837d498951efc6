"""Embed a prepared dataset: Ray Data over its shards, tokenise in tasks, encode and write in a fixed pool
of actors.

In: a root with transcripts, an `EmbedConfig`, and Ray connected by the caller. Out: embedding datasets
under the same root, and an `EmbedReport` in which the plan stands beside what happened. Shards run long
first. May be killed at any instant and called again: what is there stays, what is missing is made, and
the files are the same bytes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from isoformer.embeddings.cluster import alive_nodes, explained, require_room
from isoformer.embeddings.config import EmbedConfig, EncoderGroup, EncoderJob
from isoformer.embeddings.plan import Plan, plan
from isoformer.embeddings.profile import EncoderRate, read_profile, write_profile
from isoformer.embeddings.store import EmbeddingsManifest, ShardEntry, write_manifest
from isoformer.embeddings.workers import (
    EncodeActor,
    ShardSummary,
    WorkerSettings,
    summary_of,
    tokenise_work,
    work_table,
)
from isoformer.errors import ClusterError
from isoformer.ray_session import quiet_ray_data
from isoformer.schema import SCHEMA_VERSION, Modality
from isoformer.storage import open_storage

__all__ = ["EmbedConfig", "EmbedProgress", "EmbedReport", "EncoderJob", "embed"]


@dataclass(frozen=True)
class EmbedProgress:
    """Told after every shard."""

    shards_done: int
    shards: int
    tokens_done: int
    tokens: int
    seconds: float
    encoder: str


@dataclass(frozen=True)
class EmbedReport:
    """What a run did; `predicted_*` is the plan's word, None where the plan knew no speed.

    `actual_seconds` is the wall time without start-up, and `tokens_per_second` counts real tokens in it.
    `quarantined` (sequences) and `letters` (cropped, masked) are by reason, over the whole datasets.
    """

    uri: str
    keys: dict[Modality, list[str]]
    shards_written: int
    shards_present: int
    sequences: int
    duplicates_saved: int
    tokens: int
    bytes_written: int
    quarantined: dict[str, int]
    letters: dict[str, int]
    wall_seconds: float
    startup_seconds: float | None
    actual_seconds: float
    predicted_seconds: float | None
    tokens_per_second: float | None
    predicted_tokens: int
    predicted_bytes: int
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


Progress = Callable[[EmbedProgress], None]


def embed(
    config: EmbedConfig, root: str, *, planned: Plan | None = None, progress: Progress | None = None
) -> EmbedReport:
    """Make what is missing under `root`. Ray must be connected, unless there is nothing to do.

    `planned` is the plan of the same configuration and root, where the caller has made it just now.
    Raises what `plan` raises; StorageError where a worker cannot read or write; EncoderError where an encoder
    cannot be loaded or a sequence does not fit the device; ClusterError where Ray cannot do its part.
    """
    started_at = time.time()
    nodes = alive_nodes()
    planned = planned or plan(config, root, nodes=nodes)
    summaries: list[ShardSummary] = []
    for summary in _run(config, planned, nodes) if planned.work else ():
        summaries.append(summary)
        if progress is not None:
            progress(_progress(planned, summaries, time.time() - started_at))
    datasets = _write_manifests(planned, summaries)
    report = _report(planned, summaries, datasets, started_at)
    _remember(config, planned, summaries, report.startup_seconds, nodes)
    return report


def _run(config: EmbedConfig, planned: Plan, nodes: int) -> Iterator[ShardSummary]:
    """Summaries, as shards are done."""
    import ray.data

    task: Any = tokenise_work  # Ray Data's types know no keyword arguments
    choices = [group.choice for group in planned.groups]
    settings = WorkerSettings(
        open_storage(planned.uri),
        choices,
        config.device,
        config.dtype,
        config.budget(),
        config.threads(nodes),
    )
    require_room(config)
    with quiet_ray_data(), explained():
        wanted = ray.data.from_arrow([work_table(item) for item in planned.work])
        tokenised = wanted.map_batches(
            task,
            fn_kwargs={"source": planned.source, "choices": choices},
            batch_format="pyarrow",
            compute=ray.data.TaskPoolStrategy(size=config.tokenise_tasks),
        )
        encoded = tokenised.map_batches(
            EncodeActor,
            fn_constructor_kwargs={"settings": settings},
            batch_format="pyarrow",
            num_cpus=config.cpus_per_actor,
            num_gpus=config.gpus_per_actor,
            compute=ray.data.ActorPoolStrategy(
                size=config.actors, max_concurrent_calls_per_actor=2, enable_true_multi_threading=True
            ),
        )
        tables: Iterable[Any] = encoded.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        )
        for table in tables:
            yield from (summary_of(row) for row in table.to_pylist())


def _progress(planned: Plan, summaries: Sequence[ShardSummary], seconds: float) -> EmbedProgress:
    done = {(item.encoder, item.shard) for item in summaries}
    return EmbedProgress(
        shards_done=len(done),
        shards=len(planned.work),
        tokens_done=sum(item.tokens for item in planned.work if (item.encoder, item.shard) in done),
        tokens=sum(item.tokens for item in planned.work),
        seconds=seconds,
        encoder=planned.groups[summaries[-1].encoder].spec.name,
    )


def _write_manifests(planned: Plan, summaries: Sequence[ShardSummary]) -> dict[str, list[ShardEntry]]:
    """Last of all, and only for datasets that are whole; the entries by dataset key."""
    storage = open_storage(planned.uri)
    datasets: dict[str, list[ShardEntry]] = {}
    for group in planned.groups:
        for resolution, key in group.keys.items():
            made = {item.shard: item.entries[key] for item in summaries if key in item.entries}
            entries = {**planned.present[key], **made}
            datasets[key] = _whole(planned, key, entries)
            write_manifest(storage, _manifest(planned, group, resolution, datasets[key]))
    return datasets


def _whole(planned: Plan, key: str, entries: Mapping[int, ShardEntry]) -> list[ShardEntry]:
    missing = [shard for shard in range(planned.shards) if shard not in entries]
    if missing:
        raise ClusterError(
            f"{planned.uri}: the workers returned, but shards {missing[:10]} of {key} were not written; "
            "run the same command again"
        )
    return [entries[shard] for shard in range(planned.shards)]


def _manifest(
    planned: Plan, group: EncoderGroup, resolution: str, shards: list[ShardEntry]
) -> EmbeddingsManifest:
    key = group.keys[resolution]
    return {
        "schema_version": SCHEMA_VERSION,
        "key": key,
        "modality": group.spec.modality,
        "spec": asdict(group.spec),
        "weights_digest": group.weights_digest,
        "resolution": resolution,
        "dtype": key.split(".")[-2],
        "width": group.spec.width,
        "transcripts_fingerprint": planned.fingerprint,
        "shards": shards,
    }


def _remember(
    config: EmbedConfig, planned: Plan, summaries: Sequence[ShardSummary], startup: float | None, nodes: int
) -> None:
    """Keep the measured speeds for the next plan."""
    if not summaries:
        return
    storage = open_storage(planned.uri)
    profile = replace(read_profile(storage), startup_seconds=startup)
    for index, group in enumerate(planned.groups):
        mine = [item for item in summaries if item.encoder == index]
        tokens = sum(item.tokens for item in mine)
        seconds = sum(item.encode_seconds + item.write_seconds for item in mine)
        if tokens:
            rate = EncoderRate(tokens / seconds, tokens, mine[0].hardware)
            profile = profile.with_rate(group.name, config.device, config.threads(nodes), rate)
    write_profile(storage, profile)


def _report(
    planned: Plan,
    summaries: Sequence[ShardSummary],
    datasets: Mapping[str, list[ShardEntry]],
    started_at: float,
) -> EmbedReport:
    wall = time.time() - started_at
    startup = min(item.started_at for item in summaries) - started_at if summaries else None
    tokens = sum(item.tokens for item in summaries)
    actual = wall - startup if startup is not None else 0.0
    first_of_each = [entry for group in planned.groups for entry in datasets[next(iter(group.keys.values()))]]
    keys: dict[Modality, list[str]] = {}
    for group in planned.groups:
        keys.setdefault(group.spec.modality, []).extend(group.keys.values())
    return EmbedReport(
        uri=planned.uri,
        keys=keys,
        shards_written=sum(len(item.entries) for item in summaries),
        shards_present=sum(len(entries) for entries in planned.present.values()),
        sequences=sum(item.sequences for item in summaries),
        duplicates_saved=sum(encoder.duplicates_saved for encoder in planned.encoders),
        tokens=tokens,
        bytes_written=sum(entry["bytes"] for item in summaries for entry in item.entries.values()),
        quarantined=_summed(entry["quarantined"] for entry in first_of_each),
        letters=_summed(entry["counts"] for entry in first_of_each),
        wall_seconds=wall,
        startup_seconds=startup,
        actual_seconds=actual,
        predicted_seconds=planned.expected_seconds if summaries else None,
        tokens_per_second=tokens / actual if actual else None,
        predicted_tokens=sum(item.tokens for item in planned.work),
        predicted_bytes=sum(encoder.missing_bytes for encoder in planned.encoders),
        notes=_notes(planned, summaries),
    )


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def _notes(planned: Plan, summaries: Sequence[ShardSummary]) -> list[str]:
    """What a reader must be told beside the figures."""
    worst: dict[int, ShardSummary] = {}
    for item in summaries:
        if item.budget_halvings and item.token_budget <= worst.get(item.encoder, item).token_budget:
            worst[item.encoder] = item
    return [
        f"{planned.groups[index].spec.name}: memory ran out; the token budget was halved "
        f"{item.budget_halvings} times, to {item.token_budget}: set token_budget to that"
        for index, item in sorted(worst.items())
    ]
