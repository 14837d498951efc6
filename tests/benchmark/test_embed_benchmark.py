"""`isoformer benchmark embed`: its inputs, contestants and arithmetic; the whole of it on a few proteins."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from isoformer.benchmark import embed, engine_inputs
from isoformer.benchmark import embed_contestants as contestants
from isoformer.benchmark.embed import Outcome, benchmark_embed, ratios_of, require_agreement
from isoformer.benchmark.embed_contestants import Job
from isoformer.benchmark.engine_inputs import (
    largest_difference,
    prepare_proteins,
    program_json,
    rows_of,
    variants,
)
from isoformer.benchmark.rounds import in_turns
from isoformer.benchmark.sequences import token_budget_packs
from isoformer.cli import main
from isoformer.encoders.registry import EncoderChoice
from isoformer.errors import ClusterError, ConfigError, EncoderError

PROTEINS = ["MKTAYIAKQRQISFVK"[: 5 + number % 11] + "ACDEFGHIKL"[number % 10 :] for number in range(12)]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("proteins")
    rows = tuple(rows_of(prepare_proteins(PROTEINS, folder, shards=3)))
    return Job(EncoderChoice(name="esm2-8m", random_seed=0), "pooled", "cpu", 1, 64, rows)


class TestInputs:
    def test_a_prepared_root_has_the_proteins_in_their_order(self, job: Job) -> None:
        assert [row.protein for row in job.rows] == PROTEINS
        assert {row.shard for row in job.rows} == {0, 1, 2}
        assert len({row.digest for row in job.rows}) == len(PROTEINS)

    def test_variants_are_distinct_of_the_same_lengths_and_residues(self) -> None:
        made = variants(PROTEINS, 5)
        assert made[: len(PROTEINS)] == PROTEINS
        assert len(set(made)) == len(made) == 5 * len(PROTEINS)
        assert [sorted(one) for one in made] == 5 * [sorted(one) for one in PROTEINS]
        with pytest.raises(ConfigError, match="1000 times the proteins cannot all be distinct"):
            variants(PROTEINS, 1000)

    def test_the_sample_is_real_and_as_large_as_is_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine_inputs, "sample", lambda: (PROTEINS, []))
        total = sum(map(len, PROTEINS))
        assert set(engine_inputs.sample_proteins(total, least=1)) == set(PROTEINS)
        more = engine_inputs.sample_proteins(3 * total, least=1)
        assert len(set(more)) == len(more) == 3 * len(PROTEINS)

    def test_packs_hold_every_sequence_within_the_budget(self) -> None:
        assert token_budget_packs([5, 90, 40, 60, 200, 10], 100) == [[4], [1], [3, 2], [5, 0]]

    def test_a_program_that_fails_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(ClusterError, match=r"isoformer embed ended with status 2: .*unknown key"):
            program_json(["isoformer", "embed", "--set", "embed.nothing=1"], tmp_path / "log")


class TestContestants:
    """In this process, on a few short proteins."""

    @pytest.mark.parametrize("resolution", ["pooled", "tokens"])
    def test_loop_and_script_make_the_same(self, job: Job, tmp_path: Path, resolution: str) -> None:
        asked = replace(job, resolution=resolution)
        assert Job.read(asked.write(tmp_path / "job.json")) == asked
        made = {}
        for name in ("loop", "script"):
            said = contestants.CONTESTANTS[name](asked, tmp_path / name)
            assert said["seconds"] > 0 and said["loading_seconds"] > 0
            made[name] = contestants.read_output(tmp_path / name, 320)
        positions = [1 if resolution == "pooled" else len(protein) for protein in PROTEINS]
        assert [made["loop"][row.digest].shape for row in job.rows] == [(count, 320) for count in positions]
        assert 0 <= largest_difference(made["loop"], made["script"]) < 2e-3

    def test_ray_data_s_task_and_actor_make_the_same(self, job: Job, tmp_path: Path) -> None:
        contestants.loop(job, tmp_path / "loop")
        rows = {
            "digest": np.array([row.digest for row in job.rows]),
            "protein": np.array([row.protein for row in job.rows]),
        }
        actor = contestants.EncodeRows(job, str(tmp_path / "started"))
        batch = actor(contestants.tokenise_rows(rows, job.choice))
        first = (tmp_path / "started").read_text()
        actor(contestants.tokenise_rows(rows, job.choice))
        assert (tmp_path / "started").read_text() == first
        (tmp_path / "parquet").mkdir()
        table = pa.table({name: list(values) for name, values in batch.items()})
        pq.write_table(table, tmp_path / "parquet" / "part.parquet")
        made = contestants.read_output(tmp_path / "parquet", 320)
        assert largest_difference(contestants.read_output(tmp_path / "loop", 320), made) < 1e-3


def test_a_difference_is_relative_and_of_the_worst_position() -> None:
    ours = {"a": np.array([[3.0, 4.0], [0.0, 1.0]]), "b": np.array([[1.0, 0.0]])}
    theirs = {"a": np.array([[3.0, 4.5], [0.0, 1.0]]), "b": np.array([[1.0, 0.2]])}
    assert largest_difference(ours, ours) == 0
    assert largest_difference(ours, theirs) == pytest.approx(0.2)
    assert largest_difference(ours, {"a": ours["a"]}) == math.inf
    assert largest_difference(ours, {**ours, "b": np.ones((2, 2))}) == math.inf


def test_contestants_that_disagree_are_refused() -> None:
    require_agreement({"script_pooled": 1e-3}, "f32")
    for difference in (0.1, math.inf, math.nan):
        with pytest.raises(EncoderError, match=r"what script_pooled made differs .* nothing is reported"):
            require_agreement({"engine_pooled": 0.0, "script_pooled": difference}, "f32")


def test_ratios_are_medians_of_pairs() -> None:
    seconds = {
        "engine_pooled": [1.0, 2.0, 4.0],
        "engine_tokens": [2.0, 2.0, 2.0],
        "loop_pooled": [1.0, 1.0, 4.4],  # 1, 0.5, 1.1
        "loop_tokens": [1.0, 3.0, 1.9],
        "script_pooled": [2.0, 2.0, 12.0],  # 2, 1, 3: their median is 2; the medians' ratio would be 1
        "ray_data_pooled": [1.5, 3.0, 6.0],
    }
    assert ratios_of(seconds) == {
        "engine_over_loop_pooled": 1.0,
        "engine_over_loop_tokens": 0.95,
        "engine_over_script": 2.0,
        "engine_over_ray_data": 1.5,
    }


def test_rounds_end_in_time_and_alternate() -> None:
    order: list[str] = []
    run = {name: lambda name=name: order.append(name) or len(order) for name in "ab"}  # type: ignore[misc]
    assert in_turns(run, 2, most_seconds=math.inf) == {"a": [1, 4], "b": [2, 3]}
    assert in_turns(run, 5, most_seconds=0.0) == {"a": [5], "b": [6]}


def test_what_is_reported(job: Job) -> None:
    names = [f"{name}_{resolution}" for name, resolution in embed.CONTESTANTS]
    outcomes = {
        name: [Outcome(2.0, {"loading_seconds": 0.5}), Outcome(4.0, {"loading_seconds": 1.5})]
        for name in names
    }
    result = embed._benchmark(job, outcomes, {"script_pooled": 1e-5})
    printed = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert (printed["what"], printed["rounds"], set(printed["ratios"].values())) == ("embed", 2, {1.0})
    tokens = sum(len(protein) + 2 for protein in PROTEINS)
    assert printed["notes"]["tokens"] == tokens
    assert printed["notes"]["tokens_per_second"]["loop_pooled"] == round(tokens / 3)
    assert printed["notes"]["before_the_first_batch"]["loop_tokens.loading_seconds"] == 1.0
    assert printed["raw"]["script_pooled"] == [2.0, 4.0]
    assert printed["settings"]["weights"] == "random"


def test_the_verb_refuses_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, told in (
        (["embed", "--encoder", "esm3"], "encoder 'esm3' is not one that it can measure; allowed: esm2-8m"),
        (["embed", "--device", "cuda"], "device 'cuda' is not there; allowed here: cpu"),
        (["scale", "--encoder", "ntv2-50m-dna"], "allowed: esm2-8m"),
    ):
        assert told in refused(capsys, arguments)


def refused(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["benchmark", *arguments, "--json"])
    captured = capsys.readouterr()
    assert (ended.value.code, captured.out) == (2, "")
    return captured.err.splitlines()[-1]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_whole_of_it() -> None:
    result = benchmark_embed("esm2-8m", rounds=1, tokens=1000)
    assert result.ratios.keys() == embed.RATIOS.keys()
    assert all(value > 0 for value in result.ratios.values())
    assert result.notes["largest_difference"].keys() == {
        "engine_pooled",
        "script_pooled",
        "ray_data_pooled",
        "engine_tokens",
    }
    assert result.raw["engine_pooled.cold_start_seconds"] > result.raw["engine_pooled.startup_seconds"]
    assert json.dumps(result.to_json(), allow_nan=False)
