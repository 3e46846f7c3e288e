"""Trainings whose nodes fail: against arithmetic where none does, against Daly's formula where they do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arctic_simulator.training import Fleet, Run, train

DAY = 86400.0
RUN = Run(work=20 * DAY, interval=3600.0, checkpoint=60.0, restart=300.0)
NEVER = Fleet(nodes=4, spares=0, node_between_failures=1e15, repair=DAY)
OFTEN = Fleet(nodes=1024, spares=64, node_between_failures=1024 * 6 * 3600.0, repair=3600.0)


def test_without_failures_only_checkpoints_come_on_top():
    outcome = train(RUN, NEVER, seed=1)
    assert outcome.seconds == pytest.approx(20 * DAY + 480 * 60)
    assert (outcome.failures, outcome.lost, outcome.waiting) == (0, 0, 0)


@pytest.mark.parametrize("interval", [1200.0, 4000.0, 12000.0])
def test_with_spares_enough_a_run_takes_as_long_as_daly_has_it(interval):
    run = replace(RUN, interval=interval, work=100 * DAY)
    mean = sum(train(run, OFTEN, seed=seed).seconds for seed in range(8)) / 8
    assert mean == pytest.approx(run.interruptions(OFTEN).seconds(run.work, interval), rel=0.02)


def test_the_interval_that_the_formula_calls_best_is_better_than_others_by_a_factor_of_four():
    best = RUN.interruptions(OFTEN).best_interval

    def seconds(interval: float) -> float:
        return sum(train(replace(RUN, interval=interval), OFTEN, seed=seed).seconds for seed in range(6))

    assert seconds(best) < seconds(best / 4)
    assert seconds(best) < seconds(best * 4)


def test_where_no_node_stands_by_the_world_waits_for_a_repair():
    bare = replace(OFTEN, spares=0)
    outcome = train(RUN, bare, seed=1)
    # Each failure takes the repair of the node that failed, as no other fails while none works.
    assert outcome.waiting == pytest.approx(outcome.failures * bare.repair)
    assert outcome.goodput < train(RUN, OFTEN, seed=1).goodput


def test_thousands_of_nodes_take_no_longer_to_simulate_and_the_same_seed_is_the_same_run():
    large = Fleet(nodes=16_384, spares=128, node_between_failures=5 * 365 * DAY, repair=DAY)
    outcome = train(RUN, large, seed=7)
    assert outcome == train(RUN, large, seed=7)
    assert outcome.work == RUN.work
