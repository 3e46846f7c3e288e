from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arctic_model.config import ArcticConfig
from arctic_model.layers import RMSNorm, RotaryPositions, rotary_frequencies, rotate


def with_rope(scaling, **changes):
    return ArcticConfig.preset("arctic-tiny").replace(rope_scaling=scaling, **changes)


def test_rms_norm_is_computed_in_fp32():
    norm = RMSNorm(4, 1e-5).to(torch.bfloat16)
    x = torch.tensor([300.0, -200.0, 100.0, 0.0], dtype=torch.bfloat16)
    expected = x.double() / math.sqrt((300**2 + 200**2 + 100**2) / 4 + 1e-5)
    assert torch.equal(norm(x), expected.to(torch.bfloat16))


def test_rotation_turns_pairs_of_halves_by_position():
    config = with_rope(None, hidden_size=16, num_attention_heads=4, rope_theta=100.0)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    turned = rotate(x.expand(1, 1, 1, 4), RotaryPositions(config)(torch.tensor([[5]])))[0, 0, 0]
    for first, second, angle in ((0, 2, 5.0), (1, 3, 0.5)):
        pair = complex(x[first], x[second]) * complex(math.cos(angle), math.sin(angle))
        assert complex(turned[first], turned[second]) == pytest.approx(pair, abs=1e-6)


@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500))
def test_products_depend_on_distance_alone(query, key, shift):
    rotary = RotaryPositions(with_rope(None))
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 32, generator=generator, dtype=torch.float64).float()

    def product(at_query, at_key):
        turned = rotate(q, rotary(torch.tensor([[at_query]]))), rotate(k, rotary(torch.tensor([[at_key]])))
        return float((turned[0] * turned[1]).sum())

    assert product(query, key) == pytest.approx(product(query + shift, key + shift), abs=2e-3)


def test_linear_scaling_divides_positions():
    positions = torch.tensor([[0, 4, 8]])
    stretched = RotaryPositions(with_rope({"type": "linear", "factor": 4.0}))(positions)
    plain = RotaryPositions(with_rope(None))(positions // 4)
    torch.testing.assert_close(stretched, plain)


def test_dynamic_scaling_starts_where_the_trained_length_ends():
    config = with_rope({"type": "dynamic", "factor": 2.0})
    plain = rotary_frequencies(with_rope(None), length=1)
    assert torch.equal(rotary_frequencies(config, length=config.max_position_embeddings), plain)
    longer = rotary_frequencies(config, length=2 * config.max_position_embeddings)
    # At twice the length the base is theta * 3^(d / (d - 2)), by the formula.
    base = config.rope_theta * 3 ** (32 / 30)
    torch.testing.assert_close(longer, base ** -(torch.arange(0, 32, 2) / 32))


def test_yarn_keeps_fast_pairs_and_interpolates_slow_ones():
    config = with_rope({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64})
    ratio = rotary_frequencies(config, length=1) / rotary_frequencies(with_rope(None), length=1)
    assert ratio[0] == 1.0
    assert ratio[-1] == pytest.approx(1 / 8)
    assert (ratio.diff() <= 0).all()
    magnitude = RotaryPositions(config)(torch.tensor([[0]])).cos_BTH
    assert torch.allclose(magnitude, torch.tensor(0.1 * math.log(8.0) + 1))


@pytest.mark.parametrize(
    ("said", "magnitude"),
    [
        ({"mscale": 2.0, "mscale_all_dim": 1.0}, (0.2 * math.log(8) + 1) / (0.1 * math.log(8) + 1)),
        ({"mscale": 0.7, "mscale_all_dim": 0.7}, 1.0),
        ({"mscale": 2.0}, 0.1 * math.log(8) + 1),  # one of them alone says nothing
        ({"mscale": 2.0, "mscale_all_dim": 0.0}, 0.1 * math.log(8) + 1),
        ({"mscale": 2.0, "mscale_all_dim": 1.0, "attention_factor": 1.25}, 1.25),
    ],
)
def test_yarns_magnitude_is_that_of_transformers(said, magnitude):
    config = with_rope({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, **said})
    assert RotaryPositions(config).magnitude == pytest.approx(magnitude)


def test_yarns_ramp_may_end_between_two_pairs():
    config = with_rope(
        {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "truncate": False}, rope_theta=1e4
    )
    # The pairs that turn 32 times and once in 64 positions, by the formula; the first is none.
    end = 32 * math.log(64 / (2 * math.pi)) / (2 * math.log(1e4))
    share = (torch.arange(16) / end).clamp(0, 1)
    ratio = rotary_frequencies(config, length=1) / rotary_frequencies(with_rope(None), length=1)
    torch.testing.assert_close(ratio, 1 - share * (1 - 1 / 8))
