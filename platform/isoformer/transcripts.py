"""prepare: sources in, the sharded transcripts dataset out.

    read the sources → plan rows (one a transcript, with targets and split) → deal genes into shards of equal
    cost → extract each shard as a Ray Data task → check that the counts reconcile → publish the manifest,
    last

A dataset is a pure function of its sources' bytes, the configuration and this code's version: its
fingerprint. One that is there already with the same fingerprint is used as it is; another one under the same
root is an error, never overwritten.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from isoformer import errors
from isoformer.errors import InputError, IsoformerError
from isoformer.extraction import Policy, ShardSettings, extract_and_write_shard
from isoformer.homology_split import with_homology_splits
from isoformer.manifest import (
    MANIFEST_KEY,
    QUARANTINE_KEY,
    Counts,
    Manifest,
    Shard,
    Source,
    existing_manifest,
    fingerprint_of,
    read_manifest,
    read_shard,
)
from isoformer.planning import Plan, PrepareConfig, deal_into_shards
from isoformer.ray_session import quiet_ray_data
from isoformer.routes import plan_rows
from isoformer.sources.files import bytes_digest, existing_file
from isoformer.sources.reference import INDEX_SUFFIXES, Reference, build_reference, reference_key
from isoformer.splits import require_no_empty_split
from isoformer.storage import Storage, open_storage

__all__ = ["Manifest", "PrepareConfig", "prepare", "read_manifest", "read_shard"]

CODE_VERSION: Final = 1
"""Raise it when the same inputs make other rows than before."""

Runner = Callable[[Sequence[bytes], ShardSettings], list[dict[str, Any]]]


def prepare(
    config: PrepareConfig,
    root: str,
    *,
    run_shards: Runner | None = None,
    progress: Callable[[str], None] | None = None,
) -> Manifest:
    """Make the transcripts dataset under `root`, or find that it is already there.

    Ray must be connected by the caller, unless `run_shards` is given (`run_here` does without). `progress` is
    told what happens, in a line. InputError for bad input, FingerprintError where `root` holds a dataset of
    other inputs, StorageError where it cannot be written.
    """
    say = progress or _silent
    storage = open_storage(root)
    sources = describe_sources(config)
    fingerprint = fingerprint_of(sources, config.content(), CODE_VERSION)
    found = existing_manifest(storage, fingerprint)
    if found is not None:
        say(f"{root}: the dataset {fingerprint} is already there, made of the same inputs: used as it is")
        return found
    with tempfile.TemporaryDirectory(prefix="isoformer-prepare-") as work:
        built = build_reference(config.reference, Path(work)) if config.reference else None
        reference = Reference.open(built[0], config.chromosome_aliases) if built else None
        plan = plan_rows(config, reference)
        if config.split.method == "homology":
            say("comparing proteins and RNAs, for a split by homology cluster")
            plan = with_homology_splits(plan, reference, _policy(config), config.split)
        if built:
            _put_reference(storage, *built)
    reference_digest = built[1] if built else None
    settings = _settings(config, plan, storage, reference_digest)
    shards = [_ipc_bytes(plan.rows.take(numbers)) for numbers in deal_into_shards(plan.rows, config)]
    say(f"{plan.rows.num_rows} transcripts of {plan.rows_in} planned, in {len(shards)} shards")
    summaries = (run_shards or run_on_ray)(shards, settings)
    manifest = _manifest(config, sources, fingerprint, plan, summaries, reference_digest)
    _remove_shards(storage, keep=[shard.name for shard in manifest.shards])
    try:
        _check(manifest, config, _all_quarantined(plan, summaries))
    except InputError:
        _remove_shards(storage)
        raise
    return _publish(storage, manifest, _all_quarantined(plan, summaries))


def describe_sources(config: PrepareConfig) -> list[Source]:
    """Role, path, size and digest of every file that goes in. InputError where one is missing or empty."""
    sources = []
    for role, path in config.source_paths():
        file = existing_file(path, role)
        sources.append(
            Source(role=role, path=str(path), bytes=file.stat().st_size, digest=bytes_digest(file))
        )
    return sources


def run_here(shards: Sequence[bytes], settings: ShardSettings) -> list[dict[str, Any]]:
    """Run the shard tasks one after another in this process."""
    return [extract_and_write_shard(index, plan, settings) for index, plan in enumerate(shards)]


def run_on_ray(shards: Sequence[bytes], settings: ShardSettings) -> list[dict[str, Any]]:
    """Run the shard tasks as Ray Data tasks, one a shard; the summaries come back in shard order."""
    import ray

    items = [{"index": index, "plan": plan} for index, plan in enumerate(shards)]
    with quiet_ray_data():
        dataset = ray.data.from_items(items, override_num_blocks=len(items))
        rows = dataset.map(partial(_extract_item, settings=settings)).take_all()
    answers = [json.loads(row["answer"]) for row in rows]
    for answer in answers:
        if "error" in answer:
            raise getattr(errors, answer["error"])(answer["text"])
    return sorted(answers, key=lambda summary: summary["name"])


def _extract_item(item: dict[str, Any], settings: ShardSettings) -> dict[str, Any]:
    """A shard's summary, or an error that would come again: told to the driver, instead of tried again by
    Ray.
    """
    try:
        answer = extract_and_write_shard(int(item["index"]), item["plan"], settings)
    except IsoformerError as error:
        answer = {"error": type(error).__name__, "text": str(error)}
    return {"answer": json.dumps(answer)}


def _put_reference(storage: Storage, path: Path, digest: str) -> None:
    """Put the genome beside the data: one bgzip file, its indexes first, so that it never lacks them."""
    for suffix in reversed(INDEX_SUFFIXES):
        storage.put_file(Path(f"{path}{suffix}"), reference_key(digest) + suffix)


def _settings(
    config: PrepareConfig, plan: Plan, storage: Storage, reference_digest: str | None
) -> ShardSettings:
    return ShardSettings(
        root=storage.uri,
        target_count=len(plan.target_names),
        policy=_policy(config),
        reference_digest=reference_digest,
        chromosome_aliases=config.chromosome_aliases,
        cache_dir=config.cache_dir,
    )


def _policy(config: PrepareConfig) -> Policy:
    return Policy(**{field.name: getattr(config, field.name) for field in fields(Policy)})


def _ipc_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _silent(_message: str) -> None:
    pass


def _all_quarantined(plan: Plan, summaries: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    return [*plan.quarantined, *(row for summary in summaries for row in summary["quarantined"])]


def _manifest(
    config: PrepareConfig,
    sources: list[Source],
    fingerprint: str,
    plan: Plan,
    summaries: Sequence[Mapping[str, Any]],
    reference_digest: str | None,
) -> Manifest:
    return Manifest(
        fingerprint=fingerprint,
        sources=sources,
        config=config.model_dump(mode="json"),
        target_names=plan.target_names,
        label_provenance=config.label_provenance,
        reference_digest=reference_digest,
        chromosome_aliases=config.chromosome_aliases,
        window_bases=config.dna_window_bases if reference_digest else plan.dna_bases,
        shards=[Shard(**{name: summary[name] for name in Shard.model_fields}) for summary in summaries],
        counts=_counts(plan, summaries),
    )


def _check(manifest: Manifest, config: PrepareConfig, quarantined: Sequence[Mapping[str, str]]) -> None:
    """InputError where rows were lost, none is left, or a split lost all of its rows."""
    counts = manifest.counts
    counts.require_reconciled()
    if not counts.rows_out:
        first = quarantined[0]
        reasons = ", ".join(f"{reason} {count}" for reason, count in counts.quarantined.items())
        raise InputError(
            f"no transcript is left ({reasons}); the first: {first['transcript_id']}, {first['detail']}",
            allowed="at least one usable transcript",
        )
    require_no_empty_split(counts.splits, config.split)


def _publish(storage: Storage, manifest: Manifest, quarantined: Sequence[Mapping[str, str]]) -> Manifest:
    """Write what was set aside, then the manifest: from then on the dataset exists."""
    storage.write_bytes(QUARANTINE_KEY, _quarantine_bytes(quarantined))
    data = manifest.model_dump_json(indent=1).encode()
    if not storage.write_bytes(MANIFEST_KEY, data, if_absent=True):
        return existing_manifest(storage, manifest.fingerprint) or manifest
    return manifest


def _remove_shards(storage: Storage, keep: Sequence[str] = ()) -> None:
    """Delete shards that no manifest will name: an earlier run's that was killed, or a failed one's."""
    for key in storage.list("transcripts/shard-"):
        if key.rpartition("/")[2] not in keep:
            storage.delete(key)


def _counts(plan: Plan, summaries: Sequence[Mapping[str, Any]]) -> Counts:
    def summed(name: str) -> dict[str, int]:
        total: Counter[str] = Counter()
        for summary in summaries:
            total.update(summary[name])
        return dict(sorted(total.items()))

    return Counts(
        rows_in=plan.rows_in,
        rows_out=sum(summary["transcripts"] for summary in summaries),
        quarantined=dict(sorted(Counter(row["reason"] for row in _all_quarantined(plan, summaries)).items())),
        status=summed("status"),
        notes=summed("notes"),
        splits=summed("splits"),
        sources=plan.source_counts,
    )


def _quarantine_bytes(rows: Sequence[Mapping[str, str]]) -> bytes:
    names = ("transcript_id", "gene_id", "reason", "detail")
    table = pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in names})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
