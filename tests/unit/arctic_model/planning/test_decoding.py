"""How fast a group decodes at most: by hand for the published model, and laws that hold for any batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_model.config import ArcticConfig
from arctic_model.planning.decoding import best_layout, compute_bound_from, decode, most_within, multiplying_rate
from arctic_model.planning.devices import DEVICES, GIB, cpu
from arctic_model.planning.serving import Serving, plan_serving

ARCTIC = ArcticConfig()
GROUP = Serving(ARCTIC, tensor=8, pipeline=2)
H100 = DEVICES["h100"]
PLAN = plan_serving(GROUP, H100)


def test_one_request_is_bound_by_memory_and_reads_what_the_limit_says():
    step = decode(PLAN, 1, context=0)
    assert step.bound == "memory"
    silent = replace(H100, fabric=None, network=None)  # the limit leaves out what goes between ranks
    alone = decode(plan_serving(GROUP, silent), 1, context=4096)
    assert alone.tokens_per_second == pytest.approx(PLAN.tokens_per_second_limit(4096), rel=1e-6)


def test_a_large_batch_is_bound_by_arithmetic():
    # A token asks for two FLOPs of 17.1e9 parameters, of which 16 devices share the work; in FP8 at 1,979e12 a second.
    first = compute_bound_from(PLAN, context=0)
    assert decode(PLAN, first - 1, 0).bound != "arithmetic"
    assert decode(PLAN, first, 0).bound == "arithmetic"
    silent = plan_serving(GROUP, replace(H100, fabric=None, network=None))
    step = decode(silent, 4 * first, 0)
    assert step.tokens_per_second == pytest.approx(16 * 1979e12 / (2 * 17.09e9), rel=0.05)


def test_rates_that_nobody_knows_give_no_bound():
    plan = plan_serving(replace(GROUP, tensor=1, pipeline=1, compute="fp32"), cpu(memory=GIB, bandwidth=1e10))
    assert decode(plan, 1, 0) is None
    assert compute_bound_from(plan, 0) is None
    assert most_within(plan, 1, 1.0) is None


def test_weights_in_fp8_multiply_in_fp8_where_the_device_can():
    assert multiplying_rate(GROUP, H100) == 1979e12
    assert multiplying_rate(GROUP, DEVICES["a100"]) == 312e12
    assert multiplying_rate(replace(GROUP, weights="bf16"), H100) == 989.5e12
    assert multiplying_rate(replace(GROUP, compute="fp32"), cpu(memory=1, bandwidth=1, fp32_flops=2e11)) == 2e11


@settings(max_examples=40)
@given(st.integers(1, 2000), st.integers(0, 8192))
def test_more_requests_take_no_less_time_and_give_no_fewer_tokens(batch, context):
    one, other = decode(PLAN, batch, context), decode(PLAN, 2 * batch, context)
    assert one.seconds <= other.seconds * (1 + 1e-9)
    assert other.tokens_per_second >= one.tokens_per_second * (1 - 1e-9)


@settings(max_examples=25)
@given(st.floats(1e-4, 0.2), st.integers(1, 8192))
def test_the_largest_step_within_a_time_is_the_largest(seconds, context):
    step = most_within(PLAN, context, seconds)
    room = min(PLAN.serving.max_sequences, PLAN.kv_tokens // context)
    if step is None:
        assert decode(PLAN, 1, context).seconds > seconds
        return
    assert step.seconds <= seconds
    assert step.batch == room or decode(PLAN, step.batch + 1, context).seconds > seconds


def test_the_best_layout_has_most_tokens_of_each_device_within_the_time():
    layouts = [(4, 4), (8, 2), (8, 3), (8, 4)]
    plans = [plan_serving(replace(GROUP, tensor=tensor, pipeline=pipeline), H100) for tensor, pipeline in layouts]
    plan, step = best_layout(plans, 4096, 0.05)
    assert step.seconds <= 0.05
    for other in plans:
        fast = most_within(other, 4096, 0.05)
        assert fast is None or fast.tokens_per_second / other.devices <= step.tokens_per_second / plan.devices
    assert best_layout(plans, 4096, 1e-9) is None


def test_a_million_tokens_cost_what_the_devices_cost_meanwhile():
    step = decode(PLAN, 64, 1024)
    seconds = 1e6 / step.tokens_per_second
    assert step.cost(PLAN.devices, 3.0) == pytest.approx(16 * 3.0 * seconds / 3600)
