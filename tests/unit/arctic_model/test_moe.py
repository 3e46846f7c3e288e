from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from arctic_model.config import ArcticConfig
from arctic_model.moe import MoE, Router, Text, choice_shares, load_balancing_loss, within_capacity


@pytest.fixture
def moe(config) -> MoE:
    torch.manual_seed(0)
    moe = MoE(config)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return moe


def token_by_token(moe, x_SD, chosen):
    rows = []
    for x in x_SD:
        p = torch.softmax(moe.router.gate(x).float(), -1)
        best = p.argsort(descending=True)[:chosen]
        y = torch.zeros_like(x)
        for expert in best:
            w1, w2, w3 = (weight[expert] for weight in (moe.experts.w1, moe.experts.w2, moe.experts.w3))
            y = y + p[expert] / p[best].sum() * (w2 @ (functional.silu(w1 @ x) * (w3 @ x)))
        rows.append(y)
    return torch.stack(rows)


def test_experts_give_what_each_token_by_itself_gives(moe, config):
    x = torch.randn(2, 7, config.hidden_size)
    y, _ = moe(x)
    torch.testing.assert_close(y.flatten(0, 1), token_by_token(moe, x.flatten(0, 1), config.num_experts_per_tok))


def test_gradients_are_those_of_each_token_by_itself(moe, config):
    x = torch.randn(1, 9, config.hidden_size)
    together, alone = moe(x)[0][0], token_by_token(moe, x[0], config.num_experts_per_tok)
    ours, expected = (torch.autograd.grad(y.square().sum(), list(moe.parameters())) for y in (together, alone))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-3)


def test_no_tokens_are_no_trouble(moe, config):
    y, _ = moe(torch.empty(1, 0, config.hidden_size))
    assert y.shape == (1, 0, config.hidden_size)


def test_weights_are_renormalised_in_fp32_and_cast_back():
    router = Router(8, 5, 3).to(torch.bfloat16)
    routing = router(torch.randn(20, 8, dtype=torch.bfloat16))
    assert routing.weights_SK.dtype == torch.bfloat16
    assert routing.probabilities_SE.dtype == torch.float32
    chosen = routing.probabilities_SE.gather(1, routing.experts_SK)
    assert torch.equal(routing.weights_SK, (chosen / chosen.sum(1, keepdim=True)).to(torch.bfloat16))


def test_choices_beyond_an_experts_capacity_are_dropped_second_ones_first():
    chosen = torch.tensor([[0, 1], [0, 1], [1, 0], [0, 2]])
    kept = [[True, True], [True, False], [True, False], [False, True]]
    assert within_capacity(chosen, 3, 2).tolist() == kept
    assert within_capacity(chosen, 3, 4).all()
    assert not within_capacity(chosen, 3, 0).any()


def test_padding_takes_no_place_of_a_text():
    chosen = torch.tensor([[0, 1], [0, 1], [1, 0], [0, 2]])
    text = Text(torch.tensor([False, True, True, False]), 2)
    assert within_capacity(chosen, 3, 1, text).tolist() == [[False] * 2, [True, False], [True, False], [False] * 2]
    assert within_capacity(chosen, 3, 2, text).tolist() == [[False] * 2, [True, True], [True, True], [False] * 2]


def test_what_is_kept_of_a_token_shares_its_weight():
    config = ArcticConfig.preset("arctic-tiny").replace(moe_train_capacity_factor=0.75)
    router = Router(8, 8, 2, config.capacity)
    x_SD = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    routing = router(x_SD)
    assert routing.kept_SK is not None
    assert (routing.weights_SK[~routing.kept_SK] == 0).all()
    sums, some = routing.weights_SK.sum(1), routing.kept_SK.any(1)
    torch.testing.assert_close(sums, some.float())
    assert some.any()
    assert not routing.kept_SK.all()
    counts = torch.bincount(routing.experts_SK[routing.kept_SK], minlength=8)
    assert counts.max() <= config.capacity(32) == 6
    router.eval()
    assert router(x_SD).kept_SK is None


def test_capacity_is_an_even_share_by_the_published_keys():
    config = ArcticConfig().replace(moe_train_capacity_factor=1.25, moe_min_capacity=4)
    assert config.capacity(4096) == 80
    assert config.capacity(10) == 4


def test_balance_by_hand():
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.1, 0.3]])
    chosen = torch.tensor([[0, 1], [0, 2]])
    # First choices: all 0. Second: one 1, one 2. Means: 0.55, 0.2, 0.25.
    expected = 3 * (1.0 * 0.55 + 0.5 * 0.2 + 0.5 * 0.25)
    assert load_balancing_loss(probabilities, choice_shares(chosen, 3)) == pytest.approx(expected)


def test_padding_is_out_of_balance():
    router = Router(8, 5, 2)
    x_SD = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))

    def balance(routing, text=None):
        return load_balancing_loss(routing.probabilities_SE, choice_shares(routing.experts_SK, 5, text), text)

    expected = balance(router(x_SD[:12]))
    text = Text(torch.arange(20) < 12, 12)
    torch.testing.assert_close(balance(router(x_SD), text), expected)
    # Of ranks that share sequences each has a part, with shares of all of them: the mean is the loss of the whole.
    parts = [Text(text.mask_S[:10], 6), Text(text.mask_S[10:], 6)]
    routed = [router(x_SD[:10]), router(x_SD[10:])]
    shares = sum(choice_shares(each.experts_SK, 5, part) for each, part in zip(routed, parts, strict=True)) / 2
    found = [load_balancing_loss(each.probabilities_SE, shares, part) for each, part in zip(routed, parts, strict=True)]
    torch.testing.assert_close(sum(found) / 2, expected)


@given(st.integers(1, 8), st.integers(1, 30), st.integers(0, 5))
def test_even_probabilities_give_the_number_of_choices(experts, tokens, seed):
    chosen_each = min(2, experts)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(tokens, experts, generator=generator).argsort(-1)[:, :chosen_each]
    even = torch.full((tokens, experts), 1 / experts)
    assert load_balancing_loss(even, choice_shares(chosen, experts)) == pytest.approx(chosen_each, rel=1e-5)
