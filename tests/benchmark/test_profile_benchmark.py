"""`isoformer benchmark profile`: what is timed, what is kept, and what a second call does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from isoformer.benchmark import measure as timing
from isoformer.benchmark.measure import measure
from isoformer.benchmark.profile import benchmark_profile
from isoformer.cli import main
from isoformer.config import build
from isoformer.embeddings.config import EmbedConfig, EncoderPass, encoder_passes
from isoformer.embeddings.encode import Output
from isoformer.embeddings.profile import read_profile
from isoformer.embeddings.shard_sequences import TokenizedShard, TranscriptsSource, tokenise
from isoformer.encoders.registry import EncoderChoice, load_encoder
from isoformer.encoders.spec import Encoded, Packed
from isoformer.errors import ClusterError, EncoderError
from isoformer.manifest import read_manifest
from isoformer.storage import open_storage
from tiny_dataset import write_dataset

CONFIG = build(EmbedConfig, {"encoders": [{"name": "composition-rna", "resolution": "bins:4"}]})
OUTPUTS = (Output("key", (), "bins:4"),)


@pytest.fixture
def root(tmp_path: Path) -> str:
    write_dataset(str(tmp_path / "root"))
    return str(tmp_path / "root")


def only_pass(config: EmbedConfig, root: str) -> EncoderPass:
    (encoder_pass,) = encoder_passes(config, root)
    return encoder_pass


def shard(*lengths: int) -> TokenizedShard:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenizedShard([f"{i:03}" for i in range(len(lengths))], np.ones(offsets[-1], np.int32), offsets)


def test_an_encoder_is_measured_by_the_engines_path(root: str) -> None:
    storage, threads = open_storage(root), torch.get_num_threads()
    encoder_pass = only_pass(CONFIG, root)
    sequences = tokenise(TranscriptsSource.of(storage, read_manifest(storage)), 0, encoder_pass.choice)
    before = storage.list("")
    cost = measure(CONFIG, encoder_pass, sequences, 1, seconds=0.01)
    assert torch.get_num_threads() == threads
    assert storage.list("") == before  # what was written was temporary
    assert cost.tokens > 0 and cost.load_seconds >= 0 and cost.hardware
    assert cost.seconds_per_shard + cost.seconds_per_token + cost.seconds_per_sequence > 0
    assert cost.token_budget is None


class Cramped:
    """An encoder on a device that holds 150 tokens."""

    def __init__(self, choice: EncoderChoice, device: str) -> None:
        self._encoder = load_encoder(choice, device)
        self.spec, self.weights_digest = self._encoder.spec, self._encoder.weights_digest

    def encode(self, packed: Packed) -> Encoded:
        if len(packed.token_ids) > 150:
            raise torch.OutOfMemoryError("made up")
        return self._encoder.encode(packed)


def test_memory_that_runs_out_is_remembered(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "load_encoder", Cramped)
    cost = measure(CONFIG, only_pass(CONFIG, root), shard(*[100] * 60), 1, seconds=10)
    assert cost.token_budget == 128  # 2,048 halved until one sequence alone goes through


def test_nothing_to_measure_on_is_said(root: str) -> None:
    with pytest.raises(EncoderError, match="composition-rna: there are no sequences to measure it on"):
        measure(CONFIG, only_pass(CONFIG, root), TokenizedShard.empty(), 1)


def test_subsets_are_short_medium_long_and_mixed_at_two_sizes() -> None:
    sequences = shard(*range(1, 301))
    subsets = list(timing._subsets(sequences, OUTPUTS, 3000))
    means = [float(subset.shard.lengths().mean()) for subset in subsets]
    tokens = [int(subset.shard.lengths().sum()) for subset in subsets]
    assert means[:5] == pytest.approx([150.5, 150.5, 50.5, 150.5, 250.5], abs=10)
    assert tokens[:5] == pytest.approx([3000] * 5, rel=0.1)
    assert tokens[5:] == pytest.approx([900] * 5, rel=0.25)
    assert [subset.outputs[0].resolution for subset in subsets] == ["bins:4", "tokens", *["bins:4"] * 3] * 2


def test_sequences_of_one_length_have_no_bands() -> None:
    subsets = list(timing._subsets(shard(*[64] * 30), OUTPUTS, 640))
    assert [len(subset.shard.digests) for subset in subsets] == [10, 10, 3, 3]
    whole = (replace(OUTPUTS[0], resolution="tokens"),)
    assert {one.outputs[0].resolution for one in timing._subsets(shard(64), whole, 1)} == {"tokens", "pooled"}


def test_a_slow_encoder_is_timed_at_least_once() -> None:
    """One sequence is then all there is in a timing."""
    (first, second) = timing._subsets(shard(*[1000] * 3), OUTPUTS, 0.5)
    assert len(first.shard.digests) == len(second.shard.digests) == 1


@pytest.mark.usefixtures("ray_local")
def test_the_verb_measures_in_an_actor_and_keeps_what_it_found(
    root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--set", f"root={root}", "--set", "embed.threads_per_actor=1", "--seconds", "0.01", "--json"]
    main(["benchmark", "profile", *arguments])
    first = json.loads(capsys.readouterr().out)["encoders"]
    assert [one["encoder"] for one in first] == [f"composition-{m}.none" for m in ("dna", "rna", "protein")]
    assert not any(one["was_known"] for one in first)
    assert all(speed > 0 for one in first for speed in one["tokens_per_second"].values())
    profile = read_profile(open_storage(root))
    assert set(profile.costs) == {f"{one['encoder']}|cpu-1" for one in first}
    assert profile.startup_seconds is not None and profile.startup_seconds > 0

    main(["benchmark", "profile", *arguments])
    second = json.loads(capsys.readouterr().out)["encoders"]
    assert all(one["was_known"] for one in second)
    assert [one["cost"] for one in second] == [one["cost"] for one in first]

    main(["benchmark", "profile", "--again", *arguments])
    assert not any(one["was_known"] for one in json.loads(capsys.readouterr().out)["encoders"])


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_without_prepared_data_the_shipped_sample_stands_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["benchmark", "profile", "--set", f"root={tmp_path}", "--seconds", "0.01"])
    captured = capsys.readouterr()
    assert "the shipped human sample stands in" in " ".join(captured.err.split())
    assert "composition-protein.none" in captured.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["profile.json"]


@pytest.mark.usefixtures("ray_local")
def test_actors_of_a_node_measure_together_and_need_room(root: str) -> None:
    measured = benchmark_profile(CONFIG.edited(actors=2, threads_per_actor=1), root, seconds=0.01)
    assert [one.encoder for one in measured] == ["composition-rna.none"]
    with pytest.raises(ClusterError, match="9 actors need 9 CPU of 4 in the cluster"):
        benchmark_profile(CONFIG.edited(actors=9, threads_per_actor=1), root, again=True)
