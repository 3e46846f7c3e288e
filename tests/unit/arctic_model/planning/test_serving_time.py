"""How long an engine's step is predicted to take, in cases that can be told by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arctic_model.config import ArcticConfig
from arctic_model.cost import count_parameters, step_bytes
from arctic_model.planning.serving_time import TYPICAL, EngineStep, ServingCosts, decoding_step, seconds

CONFIG = ArcticConfig.preset("arctic-small")
NOTHING = ServingCosts(*(0.0 for _ in TYPICAL.values))


@pytest.mark.parametrize("batch", [1, 4, 40])
def test_where_only_reading_takes_time_it_is_the_bytes_of_the_roofline(batch):
    read = replace(NOTHING, read=1.0, attend_read=1.0)
    predicted = seconds(CONFIG, decoding_step(batch, 100), read)
    bytes_ = step_bytes(CONFIG, tokens=batch, context_tokens=100 * batch, bytes_per_parameter=1)
    small = count_parameters(CONFIG).routers + 2 * batch * CONFIG.hidden_size + 10_000 * CONFIG.num_hidden_layers
    assert predicted == pytest.approx(bytes_, abs=small)


def test_where_only_multiplying_takes_time_it_is_the_active_weights_of_each_row():
    multiply = replace(NOTHING, multiply=1.0)
    count = count_parameters(CONFIG)
    active = count.active - CONFIG.vocab_size * CONFIG.hidden_size
    for rows in (1, 5, 300):
        predicted = seconds(CONFIG, decoding_step(rows, 0), multiply)
        assert predicted == pytest.approx(rows * active, rel=0.01)


@given(st.integers(1, 200), st.integers(0, 2000))
def test_more_rows_and_a_longer_context_take_no_less_time(batch, context):
    here = seconds(CONFIG, decoding_step(batch, context), TYPICAL)
    assert seconds(CONFIG, decoding_step(batch + 1, context), TYPICAL) > here
    assert seconds(CONFIG, decoding_step(batch, context + 1), TYPICAL) > here


def test_a_prompt_draws_one_token_and_takes_less_than_as_many_tokens_of_as_many_requests():
    prompt = EngineStep(rows=32, requests=1, draws=1, seen=32 * 33 // 2, cached=32)
    assert seconds(CONFIG, prompt, TYPICAL) < seconds(CONFIG, decoding_step(32, 32), TYPICAL)
