"""Backward passes that compute again what they need: the same bits, each part once more and no further."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from arctic_model.attention import DocumentAttend, document_positions
from arctic_model.config import ArcticConfig
from arctic_model.initialization import init_weights
from arctic_model.model import ArcticModel
from arctic_model.recompute import recomputed

CONFIG = ArcticConfig.preset("arctic-tiny").replace(
    vocab_size=64, hidden_size=32, num_hidden_layers=4, moe_layer_frequency=2, num_local_experts=4
)


def gradients(recompute: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    model = ArcticModel(CONFIG)
    init_weights(model, 0)
    model.recompute(recompute)
    starts = [[0, 5], [0]]
    tokens_BT = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(0))
    logits, balance = model.forward_with_loss(tokens_BT, document_positions(starts, 12), DocumentAttend(starts, 12))
    loss = logits.square().mean() + balance
    loss.backward()
    return loss, {name: parameter.grad for name, parameter in model.named_parameters()}


def test_what_is_computed_again_is_the_same_to_the_bit():
    (kept, expected), (again, found) = gradients(recompute=False), gradients(recompute=True)
    assert torch.equal(kept, again)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_each_part_is_computed_again_once_but_for_its_last_product():
    calls: list[str] = []
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    first.register_forward_hook(lambda *_: calls.append("first"))
    second.register_forward_hook(lambda *_: calls.append("second"))
    out = recomputed(lambda x: second(first(x).tanh()), torch.ones(2, 3, requires_grad=True))
    assert calls == ["first", "second"]
    out.sum().backward()
    assert calls == ["first", "second", "first"]


def test_nothing_is_kept_where_no_gradient_is_asked_for():
    with torch.no_grad():
        out = recomputed(torch.tanh, torch.ones(2, requires_grad=True))
    assert not out.requires_grad


def test_a_part_whose_input_needs_no_gradient_gives_its_weights_theirs():
    layer = nn.Linear(3, 3)
    recomputed(lambda x: layer(x).tanh(), torch.ones(2, 3)).sum().backward()
    found, layer.weight.grad = layer.weight.grad, None
    layer(torch.ones(2, 3)).tanh().sum().backward()
    assert torch.equal(found, layer.weight.grad)


@pytest.mark.parametrize("changes", [{"moe_layer_frequency": 1}, {"moe_layer_frequency": 9}])
def test_a_choice_can_be_taken_back(changes):
    model = ArcticModel(CONFIG.replace(**changes))
    model.recompute(True)
    assert any(getattr(part, "recomputes", False) for part in model.modules())
    model.recompute(False)
    assert not any(getattr(part, "recomputes", False) for part in model.modules())
