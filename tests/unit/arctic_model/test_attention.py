from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arctic_model.attention import CausalAttend, attention_mask, grouped_attention


def naive(q_BTNH, k_BTGH, v_BTGH, window, sinks):
    """One query, one head, one key at a time, as the definition says."""
    out = torch.empty_like(q_BTNH)
    batch, length, heads, size = q_BTNH.shape
    share = heads // k_BTGH.shape[2]
    for b in range(batch):
        for n in range(heads):
            for t in range(length):
                seen = [j for j in range(t + 1) if window is None or t - j < window or j < sinks]
                keys = k_BTGH[b, seen, n // share]
                weights = torch.softmax(keys @ q_BTNH[b, t, n] / math.sqrt(size), 0)
                out[b, t, n] = weights @ v_BTGH[b, seen, n // share]
    return out


def random_qkv(length=9, heads=6, grouped=2, size=4):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, length, heads, size), (2, length, grouped, size), (2, length, grouped, size))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


@pytest.mark.parametrize(("window", "sinks"), [(None, 0), (3, 0), (3, 2), (1, 1), (100, 4)])
@pytest.mark.parametrize("grouped", [1, 2, 6])
def test_attention_equals_the_definition(window, sinks, grouped):
    q, k, v = random_qkv(grouped=grouped)
    torch.testing.assert_close(CausalAttend(window, sinks)(0, q, k, v), naive(q, k, v, window, sinks))


def test_cached_keys_give_what_one_pass_gives():
    q, k, v = random_qkv()
    whole = CausalAttend(4, 1)(0, q, k, v)
    visible = attention_mask(torch.arange(6, 9), torch.arange(9), 4, 1)
    torch.testing.assert_close(grouped_attention(q[:, 6:], k, v, visible), whole[:, 6:])


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 8))
def test_every_query_sees_itself_its_window_and_the_sinks(length, window, sinks):
    positions = torch.arange(length)
    visible = attention_mask(positions, positions, window, sinks)
    assert not visible.triu(1).any()
    expected = [min(t + 1, window) + min(sinks, max(t + 1 - window, 0)) for t in range(length)]
    assert visible.sum(1).tolist() == expected
