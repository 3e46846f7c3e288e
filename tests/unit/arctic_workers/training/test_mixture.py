import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from arctic_workers.training.data.mixture import PERIOD, Mixture, Ramp, permute

weights = st.lists(st.floats(0, 1), min_size=1, max_size=6).filter(lambda w: sum(w) > 0.01)


@given(weights=weights, sequences=st.integers(1, 64), offset=st.integers(0, 2**32), step=st.integers(0, 10**7))
def test_each_step_gives_every_source_its_share_within_one_sequence(
    weights: list[float], sequences: int, offset: int, step: int
) -> None:
    shares = np.array(weights) / sum(weights)
    counts = Mixture(shares.tolist(), sequences, offset).counts(step)
    assert counts.sum() == sequences
    assert (counts >= 0).all()
    assert (np.abs(counts - sequences * shares) <= 1 + 1e-9).all()


@settings(max_examples=25)
@given(weights=weights, sequences=st.integers(1, 16), steps=st.integers(0, 3 * PERIOD))
def test_draws_before_a_step_are_the_sum_of_the_steps_before_it(
    weights: list[float], sequences: int, steps: int
) -> None:
    mixture = Mixture((np.array(weights) / sum(weights)).tolist(), sequences)
    table = np.array([mixture.counts(step) for step in range(steps)]).reshape(steps, len(weights))
    assert (mixture.drawn_before(steps) == table.sum(0)).all()


@example(weights=[0.4722701265134742] * 3, sequences=15, periods=1)
@given(weights=weights, sequences=st.integers(1, 16), periods=st.integers(1, 1000))
def test_over_many_steps_each_source_has_its_weight(weights: list[float], sequences: int, periods: int) -> None:
    shares = np.array(weights) / sum(weights)
    steps = periods * PERIOD
    drawn = Mixture(shares.tolist(), sequences).drawn_before(steps)
    assert (np.abs(drawn - shares * sequences * steps) <= periods * (1 + 1e-9)).all()


@settings(max_examples=25)
@given(
    pair=st.integers(1, 5).flatmap(lambda n: st.tuples(*[st.lists(st.floats(0.01, 1), min_size=n, max_size=n)] * 2)),
    sequences=st.integers(1, 16),
    steps=st.integers(1, 3 * PERIOD),
    place=st.floats(0, 1),
)
def test_a_ramp_gives_every_step_its_share_and_the_stage_the_mean_of_both_ends(
    pair: tuple[list[float], list[float]], sequences: int, steps: int, place: float
) -> None:
    first, last = (np.array(weights) / sum(weights) for weights in pair)
    ramp = Ramp(first.tolist(), last.tolist(), sequences, steps, 7)
    step = min(int(place * steps), steps - 1)
    share = first + (last - first) * (step + 0.5) / steps
    counts = ramp.counts(step)
    assert counts.sum() == sequences
    assert (np.abs(counts - sequences * share) <= 1 + 1e-9).all()
    assert (ramp.drawn_before(step) + counts == ramp.drawn_before(step + 1)).all()
    assert ramp.drawn_before(steps).sum() == sequences * steps
    # As near to the mean as systematic sampling comes over so many steps.
    assert (np.abs(ramp.drawn_before(steps) - sequences * steps * (first + last) / 2) <= 12 + steps / 50).all()


@pytest.mark.parametrize("steps", [1000, 1024, 3000])
def test_a_ramp_goes_on_as_it_ends_for_a_run_that_has_skipped_data(steps: int) -> None:
    ramp = Ramp([1.0, 0.0], [0.0, 1.0], 4, steps)
    beyond = steps + PERIOD + 100
    assert (ramp.drawn_before(beyond) - ramp.drawn_before(steps) == [0, 4 * (beyond - steps)]).all()
    assert (ramp.counts(beyond) == [0, 4]).all()


def test_a_ramp_between_equal_weights_is_no_ramp() -> None:
    mixture, ramp = Mixture([0.3, 0.7], 5, 9), Ramp([0.3, 0.7], [0.3, 0.7], 5, 3000, 9)
    assert all((mixture.drawn_before(step) == ramp.drawn_before(step)).all() for step in (0, 1, 1024, 1500, 3000))


def test_a_source_of_weight_zero_is_never_drawn() -> None:
    mixture = Mixture([0.5, 0.0, 0.5], 3)
    assert mixture.drawn_before(10_000)[1] == 0


@given(size=st.integers(1, 500), seed=st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(size: int, seed: int) -> None:
    assert sorted(permute(i, size, seed) for i in range(size)) == list(range(size))


def test_permutations_of_different_seeds_differ() -> None:
    orders = {tuple(permute(i, 50, seed) for i in range(50)) for seed in range(20)}
    assert len(orders) == 20
