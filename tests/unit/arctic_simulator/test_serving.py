"""A simulated group, in cases with known answers: alone, in a row, and a queue of the books."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_model.planning.serving_time import EngineStep
from arctic_simulator.requests import Arrival, Crowd
from arctic_simulator.serving import Batching, percentile, serve


def _one_second(step: EngineStep) -> tuple[float]:
    return (1.0,)


def test_one_request_alone_takes_a_step_for_its_prompt_and_one_for_each_further_token():
    [answer] = serve([Arrival(2.5, prompt=10, answer=3)], Batching(), _one_second)
    assert answer.times == [3.5, 4.5, 5.5]
    assert (answer.first_token, answer.waiting) == (1.0, 0)


def test_a_long_prompt_is_read_in_as_many_steps_as_the_budget_cuts_it_into():
    [answer] = serve([Arrival(0.0, prompt=100, answer=1)], Batching(token_budget=40), _one_second)
    assert answer.times == [3.0]


def test_who_comes_during_a_step_begins_with_the_next():
    first, second = serve([Arrival(0.0, 4, 3), Arrival(0.5, 4, 1)], Batching(), _one_second)
    assert first.times == [1.0, 2.0, 3.0]
    assert second.times == [2.0]


def test_who_has_no_place_waits_until_another_has_all_of_its_tokens():
    batching = Batching(max_sequences=1)
    first, second, third = serve([Arrival(0.0, 4, 2), Arrival(0.1, 4, 2), Arrival(0.2, 4, 1)], batching, _one_second)
    assert (first.times, second.times, third.times) == ([1.0, 2.0], [3.0, 4.0], [5.0])
    assert [each.waiting for each in (first, second, third)] == [0, 0, 1]


def test_a_queue_with_one_place_waits_as_long_as_an_md1_queue():
    # Pollaczek and Khinchine, with service times that are all alike: rho / (2 (1 - rho)) of them in the mean.
    rho = 0.6
    arrivals = Crowd(rho, rho, 1e9, 1.0, prompt=1, answer=1, spread=0.0, longest=1).arrivals(20_000.0, seed=2)
    answers = serve(arrivals, Batching(max_sequences=1, blocks=4), _one_second)
    mean = sum(answer.first_token - 1.0 for answer in answers) / len(answers)
    assert mean == pytest.approx(rho / (2 * (1 - rho)), rel=0.1)


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 60), st.integers(1, 12)), min_size=1, max_size=12),
    st.integers(1, 4),
)
def test_every_request_gets_all_of_its_tokens_in_order_though_blocks_run_out(requests, places):
    arrivals = [Arrival(seconds, prompt, answer) for seconds, prompt, answer in sorted(requests)]
    batching = Batching(token_budget=16, max_sequences=places, blocks=6)
    answers = serve(arrivals, batching, lambda step: (0.01 * step.rows + 0.1,))
    assert [len(answer.times) for answer in answers] == [arrival.answer for arrival in arrivals]
    for arrival, answer in zip(arrivals, answers, strict=True):
        assert answer.arrived == pytest.approx(arrival.seconds, abs=1e-9)  # the clock adds up what lies between
        assert answer.times == sorted(answer.times)
        assert answer.times[0] > answer.arrived


def test_two_pipeline_ranks_have_two_steps_on_their_way_and_each_request_one_of_them():
    batching = Batching(ranks=2)
    first, second = serve([Arrival(0.0, 40, 3)] * 2, batching, lambda step: (1.0, 1.0))
    # One after the other goes through rank 0 while the one before is in rank 1.
    assert (first.times, second.times) == ([2.0, 4.0, 6.0], [3.0, 5.0, 7.0])


def test_what_can_never_fit_is_refused():
    with pytest.raises(ValueError, match="can never fit"):
        serve([Arrival(0.0, 100, 100)], Batching(blocks=2), _one_second)


def test_percentiles_by_hand():
    assert percentile([3, 1, 2, 4, 5], 50) == 3
    assert percentile([1, 2], 95) == pytest.approx(1.95)
    assert percentile([7], 95) == 7
