"""What a run will take, from made-up costs; what it costs, and when it is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoformer.cli import main
from isoformer.config import build
from isoformer.embeddings.forecast import Forecast, NodeCost, Price, costs_by_price, forecast, require_budget
from isoformer.embeddings.profile import EncoderCost, Profile, write_profile
from isoformer.embeddings.workload import Workload
from isoformer.errors import BudgetError, ConfigError
from isoformer.storage import open_storage
from tiny_dataset import write_dataset

COST = EncoderCost(
    load_seconds=5.0,
    seconds_per_shard=1.0,
    seconds_per_sequence=0.0,
    seconds_per_token=0.01,
    seconds_per_token_pair=0.0,
    hardware="Made-up GPU 40GB",
    tokens=10_000,
)
SLOW = replace(COST, load_seconds=3.0, seconds_per_shard=0.0, seconds_per_token=0.1)
NAMES = ("quick", "slow")


def tokens(count: int) -> Workload:
    return Workload(sequences=1, tokens=count)


def test_the_schedule_is_the_one_worked_out_by_hand() -> None:
    """quick: 5, 4, 2 s; slow: 6, 1 s, and 3 s to change over to it.

    actor 0: quick 0-5, slow 5+3 to 8, then 6 to 14 · actor 1: quick 0-4, 4-6, slow 6+3 to 9, then 1 to 10
    """
    work = [(0, tokens(400)), (0, tokens(300)), (0, tokens(100)), (1, tokens(60)), (1, tokens(10))]
    result = forecast(work, (COST, SLOW), 2, 7.0, names=NAMES)
    assert result.seconds == pytest.approx(14)
    assert result.device_seconds == pytest.approx(18)
    assert result.balance == pytest.approx(18 / 28)
    assert result.hours == pytest.approx(21 / 3600)
    assert result.unknown == []


def test_one_actor_does_all_and_pays_each_change() -> None:
    work = [(0, tokens(400)), (1, tokens(60)), (1, tokens(10))]
    result = forecast(work, (COST, SLOW), 1, None, names=NAMES)
    assert result.seconds == pytest.approx(5 + 3 + 6 + 1)
    assert result.hours == pytest.approx(15 / 3600)  # start-up is not known


def test_what_was_observed_counts() -> None:
    twice = replace(COST, observed_over_modelled=2.0)
    assert forecast([(0, tokens(400))], (twice,), 1, None, names=NAMES).seconds == pytest.approx(10)


def test_nothing_to_do_takes_no_time() -> None:
    result = forecast([], (None,), 3, 4.0, names=NAMES)
    assert (result.seconds, result.device_seconds, result.balance, result.hours) == (0, 0, 1, 0)
    assert costs_by_price(result, [Price(name="p", dollars_per_hour=1)], set()) == [NodeCost("p", 3, 0, 0)]
    require_budget(result, 1e-9)


def test_an_unknown_speed_is_said_and_only_where_there_is_work() -> None:
    result = forecast([(0, tokens(1)), (1, tokens(1))], (COST, None), 1, 4.0, names=NAMES)
    assert (result.seconds, result.hours, result.unknown) == (None, None, ["slow"])
    assert forecast([(0, tokens(1))], (COST, None), 1, 4.0, names=NAMES).unknown == []


@given(
    work=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 10**7)), min_size=1, max_size=40),
    actors=st.integers(1, 12),
)
def test_no_schedule_beats_its_work(work: list[tuple[int, int]], actors: int) -> None:
    costs = (COST, SLOW)
    items = [(encoder, tokens(count)) for encoder, count in work]
    result = forecast(items, costs, actors, None, names=NAMES)
    assert result.seconds is not None and result.device_seconds is not None and result.balance is not None
    longest = max(costs[encoder].seconds(workload) for encoder, workload in items)
    just_under = 1 - 1e-9
    assert result.seconds >= just_under * result.device_seconds / actors
    assert result.seconds >= just_under * longest
    assert result.seconds <= result.device_seconds / actors + longest + 5.0 * len(items)
    assert 0 <= result.balance <= 1 + 1e-9


def test_whole_nodes_are_paid_for_from_start_to_end() -> None:
    ten_hours = Forecast(35_000.0, 60_000.0, 1_000.0, 0.9, actors=3)
    prices = [
        Price(name="one each", dollars_per_hour=2.0),
        Price(name="two on one", dollars_per_hour=3.5, actors_per_node=2, hardware="gpu 40gb"),
        Price(name="another", dollars_per_hour=1.0, actors_per_node=4, hardware="H100"),
    ]
    assert costs_by_price(ten_hours, prices, {"Made-up GPU 40GB"}) == [
        NodeCost("one each", 3, 30.0, 60.0),
        NodeCost("two on one", 2, 20.0, 70.0),
        NodeCost("another", 1, 10.0, None),  # nothing was measured on an H100
    ]
    unknown = Forecast(None, None, None, None, actors=3, unknown=["slow"])
    assert costs_by_price(unknown, prices[:1], set()) == [NodeCost("one each", 3, None, None)]


def test_a_price_is_checked_at_the_door() -> None:
    for wrong in ({"dollars_per_hour": -1}, {"dollars_per_hour": 1, "actors_per_node": 0}):
        with pytest.raises(ConfigError, match="greater than or equal to"):
            build(Price, {"name": "p", **wrong})


def test_a_run_past_its_budget_is_refused_and_says_how_far() -> None:
    run = Forecast(148_000.0, 290_000.0, 320.0, 0.98, actors=2)
    with pytest.raises(BudgetError, match=r"embedding would take 41\.2 h on 2 actor\(s\), more than.* 8: "):
        require_budget(run, 8)
    require_budget(run, 41.3)
    require_budget(run, None)
    with pytest.raises(BudgetError, match=r"would take 20 s on 1 actor"):  # start-up counts
        require_budget(Forecast(10.0, 10.0, 10.0, 1.0, actors=1), 15 / 3600)


def test_a_budget_needs_a_known_speed() -> None:
    unknown = Forecast(None, None, None, None, actors=1, unknown=["a", "b"])
    with pytest.raises(BudgetError, match=r"not measured: a, b: run `isoformer benchmark profile`"):
        require_budget(unknown, 1000)
    require_budget(unknown, None)
    with pytest.raises(BudgetError, match=r"not measured: a, b, c, 2 more: run"):
        require_budget(replace(unknown, unknown=["a", "b", "c", "d", "e"]), 1000)


class TestTheCommandLine:
    """`plan` and `embed` with `--budget-hours`, on a made-up dataset and made-up speeds."""

    @pytest.fixture
    def arguments(self, tmp_path: Path) -> list[str]:
        write_dataset(str(tmp_path))
        encoder = "embed.encoders=[{name: composition-rna, resolution: pooled}]"
        return ["--set", f"root={tmp_path}", "--set", encoder, "--set", "embed.threads_per_actor=1"]

    @staticmethod
    def measured(root: Path, seconds_per_shard: float) -> None:
        cost = replace(COST, seconds_per_shard=seconds_per_shard, seconds_per_token=0.0)
        write_profile(open_storage(str(root)), Profile({"composition-rna.none|cpu-1": cost}, 60.0))

    def refused(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert ended.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    def test_plan_refuses_past_the_budget_and_passes_within_it(
        self, tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "not measured: composition-rna.none: run" in self.refused(
            capsys, "plan", *arguments, "--budget-hours", "1"
        )
        self.measured(tmp_path, 3600.0)  # three shards
        error = self.refused(capsys, "plan", *arguments, "--budget-hours", "3")
        assert error.startswith(
            "error: embedding would take 3.0 h on 1 actor(s), more than --budget-hours 3: "
        )
        main(["plan", *arguments, "--budget-hours", "3.1"])
        assert "expected: 3.0 h on 1 actor(s), after a start-up of 60.0 s" in capsys.readouterr().out

    def test_plan_prices_the_run(
        self, tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.measured(tmp_path, 3580.0)
        here, there = (
            "{name: here, dollars_per_hour: 2}",
            "{name: there, dollars_per_hour: 9, hardware: H100}",
        )
        prices = f"embed.prices=[{here}, {there}]"
        main(["plan", "--json", *arguments, "--set", prices])
        known, unknown = json.loads(capsys.readouterr().out)["prices"]
        assert known == {"name": "here", "nodes": 1, "node_hours": 3.0, "dollars": 6.0}
        assert (unknown["node_hours"], unknown["dollars"]) == (3.0, None)
        main(["plan", *arguments, "--set", prices])
        assert re.search(r"there +1 +3\.00 +unknown", capsys.readouterr().out)

    @pytest.mark.usefixtures("ray_local")
    def test_embed_refuses_before_it_begins(
        self, tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.measured(tmp_path, 3600.0)
        assert "more than --budget-hours 2" in self.refused(
            capsys, "embed", *arguments, "--budget-hours", "2"
        )
        assert not (tmp_path / "embeddings").exists()
