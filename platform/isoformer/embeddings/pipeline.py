"""Embed a prepared dataset: plan, hand the shards to a pool of workers, write the manifests, report.

In: a root with transcripts, an `EmbedConfig`, and Ray connected by the caller. Out: embedding datasets
under the same root, and an `EmbedReport` in which the plan stands beside what happened. May be killed at
any instant and called again: what is there stays, what is missing is made, and the files are the same
bytes.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from isoformer.embeddings.cluster import alive_nodes
from isoformer.embeddings.config import EmbedConfig, EmbeddingSpec, EncoderJob, EncoderPass
from isoformer.embeddings.messages import ShardSummary, WorkerSettings
from isoformer.embeddings.plan import Plan, plan
from isoformer.embeddings.pool import Pool, PoolStatus
from isoformer.embeddings.profile import read_profile, updated, write_profile
from isoformer.embeddings.store import EmbeddingsManifest, ShardEntry, write_manifest
from isoformer.errors import ClusterError, FingerprintError
from isoformer.manifest import read_manifest
from isoformer.schema import SCHEMA_VERSION, Modality
from isoformer.storage import open_storage

__all__ = ["EmbedConfig", "EmbedProgress", "EmbedReport", "EncoderJob", "embed"]


@dataclass(frozen=True)
class EmbedProgress:
    """Told after every shard, and every second. `busy`: part of the workers' time with the device at work.

    `notes`: what has gone wrong so far, and what was done about it.
    """

    shards_done: int
    shards: int
    tokens_done: int
    tokens: int
    tokens_per_second: float | None
    encoder: str
    workers: int
    busy: float | None
    notes: list[str]


@dataclass(frozen=True)
class EmbedReport:
    """What a run did; `predicted_*` is the plan's word, None where the plan knew no speed.

    `startup_seconds`: from the call to the first pack; `actual_seconds`: from there to the last shard.
    `tokens_per_second` counts real tokens in it. `device_busy`: part of the workers' time, from each one's
    first pack to the end of its last, that its device was at work. `dedup_ratio`: transcripts with a sequence
    over distinct sequences. `quarantined` (sequences) and `letters` (cropped, masked) are by reason, over the
    whole datasets; `failures` by kind.
    """

    uri: str
    keys: dict[Modality, list[str]]
    shards_written: int
    shards_present: int
    sequences: int
    reused: int
    duplicates_saved: int
    dedup_ratio: float
    tokens: int
    padding_fraction: float
    bytes_written: int
    quarantined: dict[str, int]
    letters: dict[str, int]
    wall_seconds: float
    startup_seconds: float | None
    actual_seconds: float
    predicted_seconds: float | None
    tokens_per_second: float | None
    device_busy: float | None
    predicted_tokens: int
    predicted_bytes: int
    failures: dict[str, int]
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
    began = time.monotonic()
    nodes = alive_nodes()
    planned = planned or plan(config, root, nodes=nodes)
    pool = Pool(config, planned, _settings(config, planned, nodes))
    told = _Told(planned, pool, sum(item.load.tokens for item in planned.work))
    summaries: list[ShardSummary] = []
    first_pack = math.inf
    for event in pool.run() if planned.work else ():
        if isinstance(event, ShardSummary):
            summaries.append(event)
            spent = event.encode_seconds + event.publish_seconds
        else:
            told.status = event
            spent = event.running_seconds or -math.inf
        first_pack = min(first_pack, time.monotonic() - spent)  # by this clock: others' may be off
        if progress is not None:
            progress(told.progress(summaries))
    datasets = _write_manifests(planned, summaries)
    startup = first_pack - began if summaries else None
    report = _report(planned, summaries, datasets, (time.monotonic() - began, startup), pool)
    _remember(config, planned, summaries, report.startup_seconds, nodes)
    return report


def _settings(config: EmbedConfig, planned: Plan, nodes: int) -> WorkerSettings:
    return WorkerSettings(
        storage=open_storage(planned.uri),
        passes=planned.passes,
        device=config.device,
        dtype=config.dtype,
        token_budget=config.budget(),
        threads=config.threads(nodes),
        most_quarantined=config.most_quarantined,
        known_budgets={
            index: (cost.hardware, cost.token_budget)
            for index, cost in enumerate(planned.costs)
            if cost is not None and cost.token_budget is not None
        },
    )


@dataclass
class _Told:
    """What is told while the run goes on."""

    planned: Plan
    pool: Pool
    tokens: int
    status: PoolStatus = field(default_factory=lambda: PoolStatus(0, 0, 0.0, None))

    def progress(self, summaries: Sequence[ShardSummary]) -> EmbedProgress:
        status = self.status
        last = summaries[-1].encoder if summaries else self.planned.work[0].encoder
        running = status.running_seconds
        return EmbedProgress(
            shards_done=len(summaries),
            shards=len(self.planned.work),
            tokens_done=status.tokens_done if len(summaries) < len(self.planned.work) else self.tokens,
            tokens=self.tokens,
            tokens_per_second=status.tokens_done / running if running else None,
            encoder=self.planned.passes[last].spec.name,
            workers=status.workers,
            busy=status.busy,
            notes=list(self.pool.notes),
        )


def _write_manifests(planned: Plan, summaries: Sequence[ShardSummary]) -> dict[str, list[ShardEntry]]:
    """Last of all, and only for datasets that are whole; the entries by dataset key."""
    storage = open_storage(planned.uri)
    now = read_manifest(storage).fingerprint
    if now != planned.fingerprint:
        raise FingerprintError(
            f"{planned.uri}: was prepared anew while it was embedded (transcripts {planned.fingerprint}, now "
            f"{now}); no manifest was written: run embed again, and it uses what is there"
        )
    datasets: dict[str, list[ShardEntry]] = {}
    for encoder_pass in planned.passes:
        for dataset in encoder_pass.datasets:
            made = {
                item.shard: item.entries[dataset.key] for item in summaries if dataset.key in item.entries
            }
            datasets[dataset.key] = _whole(planned, dataset.key, {**planned.present[dataset.key], **made})
            write_manifest(storage, _manifest(planned, encoder_pass, dataset, datasets[dataset.key]))
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
    planned: Plan, encoder_pass: EncoderPass, dataset: EmbeddingSpec, shards: list[ShardEntry]
) -> EmbeddingsManifest:
    return {
        "schema_version": SCHEMA_VERSION,
        "key": dataset.key,
        "modality": dataset.spec.modality,
        "spec": asdict(dataset.spec),
        "weights_digest": encoder_pass.weights_digest,
        "resolution": dataset.resolution,
        "dtype": dataset.key.split(".")[-2],
        "width": dataset.spec.width,
        "transcripts_fingerprint": planned.fingerprint,
        "shards": shards,
    }


def _remember(
    config: EmbedConfig, planned: Plan, summaries: Sequence[ShardSummary], startup: float | None, nodes: int
) -> None:
    """Keep what was seen of speed and memory for the next plan."""
    if not summaries:
        return
    storage = open_storage(planned.uri)
    profile = replace(read_profile(storage), startup_seconds=startup)
    for index, encoder_pass in enumerate(planned.passes):
        mine = [item for item in summaries if item.encoder == index]
        if not mine:
            continue
        profile = updated(
            profile,
            encoder_pass.name,
            config.device,
            config.threads(nodes),
            [(item.workload, item.encode_seconds) for item in mine],
            hardware=mine[0].hardware,
            load_seconds=max((item.load_seconds or 0.0 for item in mine), default=0.0),
            token_budget=min((i.token_budget for i in mine if i.budget_halvings), default=None),
        )
    write_profile(storage, profile)


def _report(
    planned: Plan,
    summaries: Sequence[ShardSummary],
    datasets: Mapping[str, list[ShardEntry]],
    spent: tuple[float, float | None],
    pool: Pool,
) -> EmbedReport:
    """`spent`: wall seconds in all, and those before the first pack."""
    wall, startup = spent
    tokens = sum(item.workload.tokens for item in summaries)
    padding = sum(item.padding_tokens for item in summaries)
    actual = wall - startup if startup is not None else 0.0
    first_of_each = [entry for each in planned.passes for entry in datasets[each.keys[0]]]
    distinct = sum(encoder.sequences for encoder in planned.encoders)
    duplicates = sum(encoder.duplicates_saved for encoder in planned.encoders)
    keys: dict[Modality, list[str]] = {}
    for each in planned.passes:
        keys.setdefault(each.spec.modality, []).extend(each.keys)
    return EmbedReport(
        uri=planned.uri,
        keys=keys,
        shards_written=sum(item.written for item in summaries),
        shards_present=sum(len(entries) for entries in planned.present.values()),
        sequences=sum(item.workload.sequences for item in summaries),
        reused=sum(item.reused for item in summaries),
        duplicates_saved=duplicates,
        dedup_ratio=(distinct + duplicates) / distinct,
        tokens=tokens,
        padding_fraction=padding / max(1, tokens + padding),
        bytes_written=sum(item.workload.output_bytes for item in summaries),
        quarantined=_summed(entry["quarantined"] for entry in first_of_each),
        letters=_summed(entry["counts"] for entry in first_of_each),
        wall_seconds=wall,
        startup_seconds=startup,
        actual_seconds=actual,
        predicted_seconds=planned.forecast.seconds if summaries else None,
        tokens_per_second=tokens / actual if actual else None,
        device_busy=_device_busy(summaries),
        predicted_tokens=sum(item.load.tokens for item in planned.work),
        predicted_bytes=sum(encoder.missing_bytes for encoder in planned.encoders),
        failures=dict(sorted(pool.failures.items())),
        notes=[*pool.notes, *_notes(planned, summaries)],
    )


def _device_busy(summaries: Sequence[ShardSummary]) -> float | None:
    """Over all workers: time at work by time from the first pack to the end of the last."""
    by_worker: dict[str, list[ShardSummary]] = {}
    for item in summaries:
        by_worker.setdefault(item.worker, []).append(item)
    spans = [
        max(item.encoded_at for item in mine) - min(item.started_at for item in mine)
        for mine in by_worker.values()
    ]
    return sum(item.busy_seconds for item in summaries) / sum(spans) if sum(spans) else None


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
        f"{planned.passes[index].spec.name}: memory ran out; the token budget was halved "
        f"{item.budget_halvings} times, to {item.token_budget}: set token_budget to that"
        for index, item in sorted(worst.items())
    ]
