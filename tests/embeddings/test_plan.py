"""The plan and the stages it names, in process: what is wanted, what is there, what stands in the way."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from isoformer.config import build
from isoformer.embeddings.config import EmbedConfig, EncoderJob
from isoformer.embeddings.key import encoder_key
from isoformer.embeddings.plan import Plan, plan
from isoformer.embeddings.shard_sequences import TranscriptsSource, require_fit, tokenise
from isoformer.embeddings.store import read_footer
from isoformer.embeddings.token_budget import TokenBudget
from isoformer.embeddings.workers import (
    EncodeWorker,
    Orders,
    ShardSummary,
    WorkError,
    WorkerSettings,
    tokenise_work,
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


def do_work(planned: Plan, count: int | None = None, orders: Orders | None = None) -> list[ShardSummary]:
    """The workers' part, without Ray."""
    worker = EncodeWorker(settings_of(planned))
    done = []
    for item in planned.work[:count]:
        met, tokens = tokenise_work(item, planned.source, planned.passes)
        assert met is None
        summary = worker.encode(item, tokens, orders or Orders())
        assert isinstance(summary, ShardSummary), summary
        done.append(summary)
    return done


def settings_of(planned: Plan, most_quarantined: float = 1.0) -> WorkerSettings:
    return WorkerSettings(
        open_storage(planned.uri), planned.passes, "cpu", "f16", TokenBudget(2048), 1, most_quarantined
    )


def shards(root: str) -> dict[str, bytes]:
    storage = open_storage(root)
    return {key: storage.read_bytes(key) for key in storage.list("embeddings/") if key.endswith(".parquet")}


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
    tokens = [item.load.tokens for item in planned.work]
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


def test_layers_of_one_encoder_are_one_pass(root: str) -> None:
    jobs = [
        {"name": "esm2-tiny", "layer": layer, "resolution": resolution}
        for layer, resolution in ((-1, "pooled"), (1, "tokens"), (-1, "bins:4"))
    ]
    together = plan(build(EmbedConfig, {"encoders": jobs}), root)
    assert [len(each.datasets) for each in together.passes] == [3]
    do_work(together)
    made = shards(root)
    for key in made:
        open_storage(root).delete(key)
    for job in jobs:
        do_work(plan(build(EmbedConfig, {"encoders": [job]}), root))
    assert shards(root) == made
    assert len(made) == 9


def test_grown_transcripts_copy_what_is_there(root: str, tmp_path: Path) -> None:
    """As many genes again, dealt differently: only the new ones are encoded, and the rows are the same."""
    do_work(plan(RNA, root))
    storage = open_storage(root)
    for key in storage.list("transcripts/"):
        storage.delete(key)
    write_dataset(root, shards=4, genes_per_shard=6, poison_protein=True)  # the first genes are drawn alike
    planned = plan(RNA, root)
    held = {
        digest
        for item in planned.work
        for by_path in item.reuse.values()
        for digests in by_path.values()
        for digest in digests
    }
    assert planned.encoders[0].reused_sequences == sum(item.reused for item in planned.work) > 0
    summaries = do_work(planned)
    assert sum(item.reused for item in summaries) == planned.encoders[0].reused_sequences == len(held)
    assert sum(item.workload.sequences for item in summaries) == 48 - len(held)
    afresh = str(tmp_path / "afresh")
    write_dataset(afresh, shards=4, genes_per_shard=6, poison_protein=True)
    do_work(plan(RNA, afresh))
    assert shards(afresh).items() <= shards(root).items()


def test_rows_of_another_dataset_are_never_copied(root: str) -> None:
    """A shard of other weights that bears an earlier shard's name in this dataset's folder."""
    seeds = [
        EmbedConfig(encoders=(EncoderJob(name="esm2-tiny", resolution="pooled", random_seed=seed),))
        for seed in (0, 1)
    ]
    for config in seeds:
        do_work(plan(config, root))
    mine, other = (
        next(path for path in shards(root) if f".random-{seed}." in path and "shard-00000" in path)
        for seed in (0, 1)
    )
    open_storage(root).write_bytes(
        re.sub(r"shard-00000\.\w+", "shard-00000.0123456789ab", mine), shards(root)[other]
    )
    open_storage(root).delete(mine)
    with pytest.raises(FingerprintError, match=r"0123456789ab\.parquet.*random-1.*wanted.*random-0"):
        plan(seeds[0], root)


def test_transcripts_that_were_prepared_anew_are_not_published_under_the_old_name(root: str) -> None:
    planned = plan(RNA, root)
    write_dataset(root, seed=7)
    worker = EncodeWorker(settings_of(planned))
    for item in planned.work:
        error = worker.encode(item, tokenise_work(item, planned.source, planned.passes)[1], Orders())
        assert isinstance(error, WorkError)
        assert error.kind == "FingerprintError"
        assert "prepared anew; run embed again" in error.text
    assert shards(root) == {}


def test_a_shard_under_the_wrong_name_is_refused(root: str) -> None:
    do_work(plan(RNA, root))
    first, second = sorted(shards(root))[:2]
    open_storage(root).write_bytes(first, shards(root)[second])
    with pytest.raises(FingerprintError, match=r"shard-00000\.\w+\.parquet.*shard 1 \(wanted 0\)"):
        plan(RNA, root)


def test_what_another_run_published_meanwhile_is_not_made_again(root: str) -> None:
    planned = plan(RNA, root)
    do_work(planned)
    again = do_work(planned)
    assert [item.workload.sequences for item in again] == [0, 0, 0]
    assert [item.entries.keys() for item in again] == [set(planned.passes[0].keys)] * 3


def test_quarantine_is_counted_and_listed(root: str) -> None:
    config = EmbedConfig(encoders=(EncoderJob(name="composition-protein"),))
    planned = plan(config, root)
    (key,) = planned.passes[0].keys
    quarantined = [summary.entries[key]["quarantined"] for summary in do_work(planned)]
    assert sum(reasons.get("no_valid_letter", 0) for reasons in quarantined) == 1
    footer = read_footer(open_storage(root), min(shards(root)))
    assert list(footer.quarantined.values()) == ["no_valid_letter"]
    assert not set(footer.quarantined) & set(tokenise(planned.source, 0, planned.passes[0].choice).digests)


def test_a_sequence_that_is_left_out_is_quarantined_with_its_reason(root: str) -> None:
    planned = plan(RNA, root)
    work = planned.work[0]
    digest = tokenise(planned.source, work.shard, planned.passes[0].choice).digests[3]
    (summary,) = do_work(planned, 1, Orders(left_out={digest: "crashes_worker"}))
    (entry,) = summary.entries.values()
    assert entry["quarantined"] == {"crashes_worker": 1}
    assert entry["sequences"] == work.load.sequences - 1


def test_weights_that_spoil_everything_are_an_error(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isoformer.embeddings.encode._poison", lambda encoded: ["not_finite"] * 99)
    planned = plan(RNA, root)
    work = planned.work[0]
    _, tokens = tokenise_work(work, planned.source, planned.passes)
    error = EncodeWorker(settings_of(planned, 0.1)).encode(work, tokens, Orders())
    assert isinstance(error, WorkError)
    assert "4 of the 8 sequences" in error.text
    assert "(not_finite 4), more than embed.most_quarantined 0.1" in error.text
    assert shards(root) == {}


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
