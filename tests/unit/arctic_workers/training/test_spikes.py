import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arctic_workers.training.guard import MOST_ROLLBACKS, SpikeGuard
from arctic_workers.training.spikes import LEAST, WINDOW, Spikes


def falling(steps: int, noise: float = 0.05) -> list[float]:
    """Losses such as a training's: down by a power of the step, with noise."""
    draw = random.Random(1)
    return [2 + 5 * (step + 1) ** -0.3 + draw.gauss(0, noise) for step in range(steps)]


def test_an_ordinary_curve_has_no_spike() -> None:
    spikes = Spikes()
    for loss in falling(2000):
        assert not spikes.is_spike(loss)
        spikes.note(loss)


@pytest.mark.parametrize("jump", [1.0, 8.0, math.inf, math.nan])
def test_a_jump_is_a_spike_and_does_not_hide_the_next(jump: float) -> None:
    spikes, losses = Spikes(), falling(300)
    for loss in losses:
        spikes.note(loss)
    assert spikes.is_spike(losses[-1] + jump)
    if math.isfinite(jump):
        spikes.note(losses[-1] + jump)
        assert spikes.is_spike(losses[-1] + jump)


def test_nothing_is_a_spike_before_there_is_something_to_compare_with_but_what_is_no_number() -> None:
    spikes = Spikes([1.0] * (LEAST - 1))
    assert not spikes.is_spike(1e9)
    assert spikes.is_spike(math.nan)
    spikes.note(1.0)
    assert spikes.is_spike(1e9)


def test_losses_that_hardly_vary_may_begin_to() -> None:
    assert not Spikes([2.0] * WINDOW).is_spike(2.09)
    assert Spikes([2.0] * WINDOW).is_spike(2.11)


@given(st.lists(st.floats(0.1, 20), max_size=300), st.floats(0.1, 20), st.integers(0, 300))
def test_the_verdict_is_the_same_after_a_restart_at_any_step(losses: list[float], loss: float, stop: int) -> None:
    whole, first = SpikeGuard("skip"), SpikeGuard("skip")
    for value in losses[:stop]:
        whole.allows(value, can_go_back=False), first.allows(value, can_go_back=False)
    resumed = SpikeGuard("skip")
    resumed.restore(json.loads(json.dumps(first.to_json())))
    for value in [*losses[stop:], loss]:
        assert whole.allows(value, can_go_back=False) == resumed.allows(value, can_go_back=False)


@pytest.mark.parametrize(
    ("policy", "can_go_back", "allowed", "alarm"),
    [
        (None, True, True, None),
        ("skip", True, False, None),
        ("rollback", True, False, 50.0),
        ("rollback", False, False, None),
        ("stop", False, False, 50.0),
    ],
)
def test_the_policy_says_what_becomes_of_a_jump(policy, can_go_back: bool, allowed: bool, alarm: float | None) -> None:
    guard = SpikeGuard(policy)
    for loss in falling(50):
        assert guard.allows(loss, can_go_back=can_go_back)
    assert guard.allows(50.0, can_go_back=can_go_back) == allowed
    assert guard.alarm == alarm


def test_a_run_goes_back_to_a_checkpoint_so_often_and_no_more() -> None:
    guard = SpikeGuard("rollback")
    assert all(guard.went_back("code", 3 * time, 15) for time in range(1, MOST_ROLLBACKS + 1))
    assert not guard.went_back("code", 99, 15)
    assert guard.went_back("code", 100, 20)
    assert guard.skipped_data == {"code": 100}
