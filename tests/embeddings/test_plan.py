"""The plan and the stages it names, in process: what is wanted, what is there, what stands in the way."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from isoformer.config import build
from isoformer.embeddings.config import EmbedConfig, EncoderJob
from isoformer.embeddings.key import encoder_key
from isoformer.embeddings.plan import Plan, plan
from isoformer.embeddings.profile import read_profile
from isoformer.embeddings.shard_sequences import TranscriptsSource, require_fit, tokenise
from isoformer.embeddings.store import read_footer
from isoformer.embeddings.token_budget import TokenBudget
from isoformer.embeddings.workers import (
    EncodeActor,
    ShardSummary,
    WorkerSettings,
    summary_of,
    tokenise_work,
    work_table,
)
from isoformer.encoders.registry import EncoderChoice, get_spec
from isoformer.errors import ConfigError, EncoderError, FingerprintError, StorageError
from isoformer.manifest import read_manifest
from isoformer.sources.reference import reference_key
from isoformer.storage import open_storage
from tiny_dataset import write_dataset

RNA = EmbedConfig(encoders=(EncoderJob(name="composition-rna", resolution="bins:4"),))
ALL = EmbedConfig(encoders=tuple(EncoderJob(name=f"composition-{m}") for m in ("dna", "rna", "protein")))


@pytest.fixture
def root(tmp_path: Path) -> str:
    write_dataset(str(tmp_path / "root"), poison_protein=True)
    return str(tmp_path / "root")


def do_work(planned: Plan, count: int | None = None) -> list[ShardSummary]:
    """The workers' part, without Ray."""
    choices = [group.choice for group in planned.groups]
    actor = EncodeActor(
        WorkerSettings(open_storage(planned.uri), choices, "cpu", "f16", TokenBudget(2048), 1)
    )
    return [
        summary_of(actor(tokenise_work(work_table(item), planned.source, choices)).to_pylist()[0])
        for item in planned.work[:count]
    ]


def test_what_is_wanted_is_counted_by_sequence(root: str) -> None:
    dna, rna, protein = plan(ALL, root).encoders
    assert (dna.sequences, dna.duplicates_saved) == (12, 12)  # two isoforms share their window
    assert (rna.sequences, rna.duplicates_saved) == (24, 0)
    assert protein.sequences + protein.duplicates_saved == 20  # two genes of twelve have no protein
    assert dna.missing_tokens == 12 * 512
    assert [encoder.shards_wanted for encoder in (dna, rna, protein)] == [3, 3, 3]
    assert rna.missing_bytes == 24 * 16 * get_spec(EncoderChoice(name="composition-rna")).width * 2


def test_resume_is_a_set_difference(root: str) -> None:
    planned = plan(RNA, root)
    tokens = [item.tokens for item in planned.work]
    assert tokens == sorted(tokens, reverse=True)  # long first
    summary = do_work(planned, 1)[0]
    again = plan(RNA, root)
    assert {item.shard for item in again.work} == {0, 1, 2} - {summary.shard}
    assert again.encoders[0].shards_present == 1


def test_one_pass_makes_all_resolutions_and_a_new_one_is_added(root: str) -> None:
    two = RNA.edited(encoders=[{"name": "composition-rna", "resolution": r} for r in ("bins:4", "pooled")])
    do_work(plan(RNA, root))
    planned = plan(two, root)
    assert [[header.resolution for header in item.missing] for item in planned.work] == [["pooled"]] * 3
    fresh = plan(two.edited(dtype="f32"), root)
    assert [len(item.missing) for item in fresh.work] == [2, 2, 2]


def test_shards_of_other_transcripts_are_never_reused(root: str, tmp_path: Path) -> None:
    do_work(plan(RNA, root))
    other = tmp_path / "other"
    write_dataset(str(other), seed=1)
    (other / "embeddings").symlink_to(Path(root) / "embeddings")
    with pytest.raises(FingerprintError, match=r"shard-00000\.parquet.*transcripts_digest '\w+' \(wanted"):
        plan(RNA, str(other))


def test_quarantine_is_counted_and_listed(root: str) -> None:
    config = EmbedConfig(encoders=(EncoderJob(name="composition-protein"),))
    planned = plan(config, root)
    key = next(iter(planned.groups[0].keys.values()))
    quarantined = [summary.entries[key]["quarantined"] for summary in do_work(planned)]
    assert sum(reasons.get("no_valid_letter", 0) for reasons in quarantined) == 1
    footer = read_footer(open_storage(root), f"embeddings/protein/{key}/shard-00000.parquet")
    assert list(footer.quarantined.values()) == ["no_valid_letter"]
    assert not set(footer.quarantined) & set(tokenise(planned.source, 0, planned.groups[0].choice).digests)


def test_dna_is_cut_around_the_tss(root: str) -> None:
    """Two encoders that read a different stretch agree where they overlap: both are centred on the TSS."""
    storage = open_storage(root)
    source = TranscriptsSource.of(storage, read_manifest(storage))
    spec = get_spec(EncoderChoice(name="composition-dna"))
    tokens = tokenise(source, 0, EncoderChoice(name="composition-dna"))
    assert spec.window_bases is not None
    assert set(tokens.lengths().tolist()) == {sum(spec.window_bases) // 12}


def test_a_window_that_is_too_small_names_both(tmp_path: Path) -> None:
    write_dataset(str(tmp_path), window_bases=1000)
    config = EmbedConfig(encoders=(EncoderJob(name="composition-dna"),))
    with pytest.raises(EncoderError, match=r"composition-dna reads 3072 bases.*windows of 1000 bases"):
        plan(config, str(tmp_path))
    spec = dataclasses.replace(get_spec(EncoderChoice(name="composition-dna")), window_bases=(500, 500))
    require_fit(spec, 1000, "here")
    with pytest.raises(EncoderError):
        require_fit(dataclasses.replace(spec, window_bases=(500, 501)), 1000, "here")


def test_a_changed_reference_is_noticed(root: str, tmp_path: Path) -> None:
    storage = open_storage(root)
    other = str(tmp_path / "other")
    write_dataset(other, seed=5)
    mine, theirs = read_manifest(storage), read_manifest(open_storage(other))
    for suffix in ("", ".fai", ".gzi"):
        data = open_storage(other).read_bytes(reference_key(str(theirs.reference_digest)) + suffix)
        storage.write_bytes(reference_key(str(mine.reference_digest)) + suffix, data)
    source = TranscriptsSource.of(storage, mine, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(StorageError, match="the reference was changed or damaged; prepare again"):
        tokenise(source, 0, EncoderChoice(name="composition-dna"))


def test_unknown_speed_is_said_and_calibration_mends_it(root: str) -> None:
    before = plan(RNA, root)
    assert (before.expected_seconds, before.unknown) == (None, ["composition-rna.none"])
    after = plan(RNA, root, calibrate_unknown=True)
    assert after.unknown == []
    assert after.expected_seconds is not None and after.expected_seconds > 0
    assert len(read_profile(open_storage(root)).encoders) == 1
    assert after.encoders[0].measured_on


def test_a_root_without_transcripts(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="run prepare first"):
        plan(RNA, str(tmp_path))


@pytest.mark.parametrize(
    ("section", "named"),
    [
        (
            {"encoders": [{"name": "composition-rna", "resolution": "bins"}]},
            "allowed: pooled, max, cls, bins:N",
        ),
        ({"encoders": []}, "encoders"),
        ({"token_budgets": 5}, "did you mean 'token_budget'"),
        ({"dtype": "f8"}, "dtype"),
    ],
)
def test_configuration_is_checked_at_the_door(section: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build(EmbedConfig, section)


def test_keys_differ_wherever_a_value_could() -> None:
    spec = get_spec(EncoderChoice(name="composition-rna"))
    variants = [
        encoder_key(spec, "none", "pooled"),
        encoder_key(spec, "none", "bins:2"),
        encoder_key(spec, "none", "pooled", "f32"),
        encoder_key(spec, "0123456789abcdef", "pooled"),
        encoder_key(spec, "0123456789abcdee", "pooled"),
        encoder_key(dataclasses.replace(spec, identity={**spec.identity, "code": 99}), "none", "pooled"),
        encoder_key(dataclasses.replace(spec, window_bases=(1, 2)), "none", "pooled"),
    ]
    assert len(set(variants)) == len(variants)
    assert variants[3].startswith("composition-rna.01234567.pooled.f16.")
    with pytest.raises(ConfigError, match="allowed: f16, f32"):
        encoder_key(spec, "none", "pooled", "f8")


def test_workers_pass_plain_arrow(root: str) -> None:
    planned = plan(RNA, root)
    choices = [group.choice for group in planned.groups]
    row = tokenise_work(work_table(planned.work[0]), planned.source, choices)
    assert row.num_rows == 1
    assert row.schema.field("token_ids").type == pa.large_binary()
    assert len(np.frombuffer(row["offsets"][0].as_buffer(), np.int64)) == planned.work[0].sequences + 1
