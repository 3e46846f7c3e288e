"""Formulas of Young and Daly, against each other and against what they say is least."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arctic_model.planning.failures import Interruptions, world_between_failures


def test_youngs_interval_by_hand():
    # A checkpoint of 50 s and a failure a day: sqrt(2 x 50 x 86,400) = 2,939 s.
    assert Interruptions(86400.0, 50.0, 0.0).young_interval == pytest.approx(2939.4, abs=0.1)


def test_a_world_fails_as_often_as_all_of_its_nodes_together():
    # Llama 3, 16,384 GPUs: 419 unexpected interruptions in 54 days (arXiv 2407.21783, table 5), of 2,048 nodes.
    node = 54 * 86400 / 419 * 2048
    assert world_between_failures(2048, node) / 3600 == pytest.approx(3.09, abs=0.01)


@given(between=st.floats(600, 1e7), checkpoint=st.floats(1, 100), restart=st.floats(0, 600))
def test_no_interval_is_much_better_than_the_best(between, checkpoint, restart):
    here = Interruptions(between, checkpoint, restart)
    best = here.seconds(1.0, here.best_interval)
    assert best <= here.seconds(1.0, here.young_interval) * (1 + 1e-3)
    for factor in (0.5, 0.8, 1.25, 2.0):
        assert best <= here.seconds(1.0, here.best_interval * factor) * (1 + 1e-3)


def test_where_hardly_anything_fails_only_checkpoints_cost():
    rare = Interruptions(1e12, 10.0, 100.0)
    assert rare.seconds(1000.0, 90.0) == pytest.approx(1000 * 100 / 90, rel=1e-6)
    assert rare.goodput(1e5) == pytest.approx(1.0, abs=2e-4)
