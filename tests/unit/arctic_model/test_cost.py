from __future__ import annotations

import pytest
import torch

from arctic_model.config import PRESETS, ArcticConfig
from arctic_model.cost import (
    count_parameters,
    expected_experts_touched,
    kv_bytes_per_token,
    model_flops_utilization,
    step_bytes,
    training_flops_per_token,
    weight_bytes,
)
from arctic_model.model import ArcticModel

ARCTIC = ArcticConfig()


def test_arctic_counts_are_the_published_ones():
    count = count_parameters(ARCTIC)
    assert round(count.total / 1e9, 1) == 478.6
    assert round(count.active / 1e9, 2) == 17.32
    assert round(count.dense / 1e9, 3) == 9.965
    assert round(count.routers / 1e6) == 32
    assert round(count.experts / 128 / 1e9, 3) == 3.661
    assert kv_bytes_per_token(ARCTIC) == 143_360
    assert round(weight_bytes(ARCTIC) / 1e9) == 957
    assert round(weight_bytes(ARCTIC, bytes_per_parameter=1) / 1e9) == 479


@pytest.mark.parametrize("name", PRESETS)
def test_counts_are_those_of_the_model(name):
    with torch.device("meta"):
        model = ArcticModel(PRESETS[name])
    assert sum(parameter.numel() for parameter in model.parameters()) == count_parameters(PRESETS[name]).total


def test_presets_have_the_sizes_that_they_are_named_for():
    totals = {name: count_parameters(preset).total for name, preset in PRESETS.items()}
    assert 2e6 < totals["arctic-tiny"] < 6e6
    assert 9e7 < totals["arctic-small"] < 1.1e8
    assert round(totals["arctic-466m"] / 1e6) == 466


def test_training_flops_by_hand(config):
    hidden, heads = 24, 6
    grouped = 2 * hidden // heads
    attention = 2 * hidden * hidden + 2 * hidden * grouped
    dense_layer = attention + 3 * hidden * 20 + 2 * hidden
    expert_layer = attention + 3 * hidden * hidden + 4 * hidden + 2 * 3 * hidden * 20 + 3 * hidden
    multiplying = 2 * dense_layer + 2 * expert_layer + hidden + 50 * hidden
    assert training_flops_per_token(config, 64) == 6 * multiplying + 12 * 4 * hidden * 64


def test_all_devices_busy_is_a_utilization_of_one():
    flops = training_flops_per_token(ARCTIC, 4096)
    assert model_flops_utilization(ARCTIC, sequence_length=4096, tokens_per_second=10, peak_flops=10 * flops) == 1
    fewer = training_flops_per_token(ARCTIC, 4096, frozen=True)
    adapter = {"sequence_length": 4096, "peak_flops": 10 * fewer, "frozen": True}
    assert model_flops_utilization(ARCTIC, tokens_per_second=10, **adapter) == 1
    assert fewer < flops


def test_a_step_reads_at_least_the_active_weights_and_at_most_all():
    preset = PRESETS["arctic-466m"]
    count, embedding = count_parameters(preset), preset.vocab_size * preset.hidden_size
    one = step_bytes(preset, tokens=1, context_tokens=0, bytes_per_parameter=1)
    assert one == count.active - embedding + preset.hidden_size
    many = step_bytes(preset, tokens=8192, context_tokens=0, bytes_per_parameter=1)
    assert many == pytest.approx(count.total)
    measured = step_bytes(preset, tokens=16, context_tokens=100, bytes_per_parameter=1, experts_touched=14)
    by_hand = count.dense - (8192 - 16) * 1024 + count.routers + count.experts * 14 / 16
    assert measured == by_hand + 100 * kv_bytes_per_token(preset)


def test_experts_touched_by_even_routing():
    assert expected_experts_touched(ARCTIC, 1) == pytest.approx(2)
    assert expected_experts_touched(ARCTIC, 2) == pytest.approx(2 + 2 * 126 / 128)
