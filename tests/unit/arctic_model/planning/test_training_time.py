"""What a step does, counted by hand, and how its prediction grows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arctic_model.config import ArcticConfig
from arctic_model.cost import count_parameters, training_flops_per_token
from arctic_model.planning.training_time import TYPICAL, RankStep, seconds

TINY = ArcticConfig.preset("arctic-tiny")
STEP = RankStep(TINY, micro_batches=4, sequences=8, length=128)


def test_flops_are_those_of_mfu_but_for_pairs_that_causal_attention_leaves_out():
    work = STEP.work
    assert (work.dense + work.experts + 2 * work.attention) / STEP.tokens == training_flops_per_token(TINY, 128)


def test_what_does_not_depend_on_tokens_is_counted_once_a_micro_batch_or_once_a_step():
    work, count = STEP.work, count_parameters(TINY).total
    assert (work.weights, work.updated) == (4 * count, count)
    assert (work.layers, work.expert_calls, work.micro_batches) == (4 * 4, 4 * 4 * 8, 4)


def test_a_step_with_the_same_tokens_in_more_micro_batches_takes_longer():
    cut = replace(STEP, micro_batches=8, sequences=4)
    assert cut.tokens == STEP.tokens
    assert seconds(cut, TYPICAL) > seconds(STEP, TYPICAL)


@given(
    field=st.sampled_from(["hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"]),
    times=st.integers(2, 4),
)
def test_a_larger_model_takes_longer(field, times):
    larger = replace(STEP, config=TINY.replace(**{field: times * getattr(TINY, field)}))
    assert seconds(larger, TYPICAL) > seconds(STEP, TYPICAL)


def test_more_experts_of_which_each_token_has_as_many_cost_their_weights_and_starts_alone():
    more = replace(STEP, config=TINY.replace(num_local_experts=16)).work
    assert more.experts == STEP.work.experts
    assert more.expert_calls == 2 * STEP.work.expert_calls
    assert more.weights > STEP.work.weights
    # The router is a little larger.
    assert more.dense == pytest.approx(STEP.work.dense, rel=0.01)
