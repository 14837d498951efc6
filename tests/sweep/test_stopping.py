"""Stopping rules against independent implementations: trials one after another, the same decisions."""

from __future__ import annotations

import warnings

import numpy as np
import optuna
import pytest

from isoformer.config import build
from isoformer.errors import ConfigError
from isoformer.sweep import SweepConfig
from isoformer.sweep.stopping import Peer, StoppingRule

EPOCHS, GRACE, ETA = 27, 2, 3


def curves(count: int = 60) -> list[list[float]]:
    """Curves that rise to a height of their own, with noise."""
    random = np.random.default_rng(5)
    heights = random.uniform(0, 1, count)
    rise = 1 - np.exp(-np.arange(EPOCHS) / 6)
    return [list(height * rise + 0.05 * random.normal(size=EPOCHS)) for height in heights]


def ours(scheduler: str, of: list[list[float]]) -> list[int]:
    """Epochs that each trial got, trials one after another."""
    rule = StoppingRule(scheduler, EPOCHS, GRACE, ETA)  # type: ignore[arg-type]
    peers: list[Peer] = []
    lengths = []
    for number, scores in enumerate(of):
        curve: dict[int, float] = {}
        for epoch, score in enumerate(scores):
            curve[epoch] = score
            if rule.stops(number, curve, peers):
                break
        lengths.append(len(curve))
        peers.append(Peer(number, curve, is_complete=len(curve) == EPOCHS))
    return lengths


def test_asha_stops_what_ray_tunes_scheduler_stops() -> None:
    from ray.tune.experiment import Trial
    from ray.tune.schedulers import ASHAScheduler

    made = curves()
    scheduler = ASHAScheduler(
        time_attr="epochs", metric="score", mode="max",
        max_t=EPOCHS + 1, grace_period=GRACE, reduction_factor=ETA,
    )  # fmt: skip
    lengths = []
    for number, scores in enumerate(made):
        trial = Trial("made", stub=True, trial_id=str(number))
        scheduler.on_trial_add(None, trial)
        for epoch, score in enumerate(scores):
            decision = scheduler.on_trial_result(None, trial, {"epochs": epoch + 1, "score": score})
            if decision == scheduler.STOP:
                break
        lengths.append(epoch + 1)
    assert ours("asha", made) == lengths
    assert len(set(lengths)) == 4, "some were stopped at each rung, some went to the end"


def test_median_stops_what_optunas_pruner_stops() -> None:
    made = curves()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=GRACE)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    lengths = []
    for scores in made:
        trial = study.ask()
        for epoch, score in enumerate(scores):
            trial.report(score, epoch)
            if epoch < EPOCHS - 1 and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, scores[-1])
        lengths.append(epoch + 1)
    assert ours("median", made) == lengths
    assert min(lengths) <= 5 and max(lengths) == EPOCHS


def test_hyperband_gives_its_brackets_the_shares_of_the_algorithm_and_compares_within_them() -> None:
    rule = StoppingRule("hyperband", EPOCHS, GRACE, ETA)
    brackets = [rule._bracket(number) for number in range(3000)]
    counts = np.bincount(brackets) / 3000
    optunas = [ceil_share(3, s) for s in range(3)]
    assert np.allclose(counts, np.array(optunas) / sum(optunas), atol=0.01)
    bad = {epoch: 0.0 for epoch in range(GRACE)}
    rivals = [Peer(n, {e: 1.0 for e in range(EPOCHS)}, is_complete=True) for n in range(1, 20)]
    first = next(n for n in range(20, 60) if brackets[n] == 0)
    other = next(n for n in range(20, 60) if brackets[n] == 1)
    assert rule.stops(first, bad, rivals) and not rule.stops(other, bad, rivals)
    assert not rule.stops(first, bad, [peer for peer in rivals if brackets[peer.number] != 0])


def ceil_share(brackets: int, bracket: int) -> int:
    """Trials of a bracket as in Optuna's HyperbandPruner."""
    s = brackets - 1 - bracket
    return int(np.ceil(brackets * ETA**s / (s + 1)))


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median", "none"])
def test_the_last_epoch_stops_nothing_and_neither_does_a_trial_alone(scheduler: str) -> None:
    rule = StoppingRule(scheduler, EPOCHS, GRACE, ETA)  # type: ignore[arg-type]
    low = {epoch: -1.0 for epoch in range(EPOCHS)}
    rivals = [Peer(n, {e: 1.0 for e in range(EPOCHS)}, is_complete=True) for n in range(8)]
    assert not rule.stops(9, low, rivals)
    assert not rule.stops(9, {e: -1.0 for e in range(GRACE)}, [])


def test_what_no_scheduler_can_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="compares one score"):
        build(SweepConfig, {"cost": "seconds", "scheduler": "asha"})
    with pytest.raises(ConfigError, match="cmaes knows one objective"):
        build(SweepConfig, {"cost": "seconds", "sampler": "cmaes"})
    assert StoppingRule.of(SweepConfig(cost="seconds"), 20).scheduler == "none"
    assert StoppingRule.of(SweepConfig(), 20).scheduler == "asha"
    assert StoppingRule.of(SweepConfig(), 20, is_stoppable=False).scheduler == "none"
