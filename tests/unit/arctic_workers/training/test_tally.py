from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from arctic_model.config import ArcticConfig
from arctic_model.initialization import init_weights
from arctic_model.model import ArcticModel
from arctic_model.moe import Router
from arctic_workers.training import tally as tallies
from arctic_workers.training.data.windows import IGNORED
from arctic_workers.training.engine import LossModule
from arctic_workers.training.tally import Tally

CONFIG = ArcticConfig.preset("arctic-tiny").replace(
    vocab_size=64, hidden_size=16, intermediate_size=8, num_hidden_layers=3, moe_layer_frequency=2, num_local_experts=4
)
TOKENS = torch.arange(48).view(2, 24) % 64


@pytest.fixture
def model() -> ArcticModel:
    model = ArcticModel(CONFIG)
    init_weights(model, 1)
    return model


def alone(sums: Tensor) -> Sequence[float]:
    return list(map(float, sums))


def choose_only(model: ArcticModel, experts: list[int]) -> None:
    """Let the router choose these experts alone: what it reads is positive, as by its norm's bias there is none."""
    for name, module in model.named_modules():
        if name.endswith("router"):
            chosen = torch.zeros(4)
            chosen[experts] = 100.0
            module.register_forward_pre_hook(lambda *_: (torch.ones(48, 16),))
            module.gate.weight.data = chosen[:, None].expand(4, 16).clone()  # type: ignore[union-attr, operator]


def test_each_choice_of_a_counted_pass_is_counted_once(model: nn.Module) -> None:
    tally = Tally(model, [], torch.device("cpu"))
    with tally.counting():
        loss = model(TOKENS).square().mean()
    loss.backward()
    model(TOKENS)
    heard: list[list[float]] = []
    look = tally.look(1, lambda sums: heard.append(alone(sums)) or heard[-1])
    (health,) = look.routers
    assert heard[0][-2:] == [48, 0]  # tokens, and choices that were dropped
    assert sum(heard[0][:4]) == 48 * CONFIG.num_experts_per_tok
    assert (health.layer, sum(health.load)) == (1, pytest.approx(1))
    assert 0 < health.entropy < 1
    assert health.imbalance == pytest.approx(4 * max(health.load))
    assert tally.look(2, alone).routers == []  # nothing has passed since


def test_the_share_of_choices_that_were_dropped_is_told(model: ArcticModel) -> None:
    choose_only(model, [1, 2])  # half of all experts, with room for an even share: half of the choices
    for module in model.modules():
        if isinstance(module, Router):
            module.capacity = CONFIG.capacity
    tally = Tally(model, [], torch.device("cpu"))
    with tally.counting():
        model(TOKENS)
    assert tally.look(1, alone).routers[0].dropped == pytest.approx(0.5)
    model.eval()  # where nothing is dropped
    with tally.counting():
        model(TOKENS)
    assert tally.look(2, alone).routers[0].dropped == 0


def test_even_routing_has_entropy_one_and_no_preference(model: ArcticModel) -> None:
    for name, module in model.named_modules():
        if name.endswith("router"):
            module.gate.weight.data.zero_()  # type: ignore[union-attr, operator]
    tally = Tally(model, [], torch.device("cpu"))
    with tally.counting():
        model(TOKENS)
    assert tally.look(1, alone).routers[0].entropy == pytest.approx(1)


def test_an_expert_is_dead_once_it_got_nothing_for_long_enough_and_alive_again_with_a_token(
    model: ArcticModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tallies, "DEAD_STEPS", 10)
    choose_only(model, [0, 2])
    tally = Tally(model, [], torch.device("cpu"))
    tally.begin(100)
    dead = []
    for step in (101, 109, 110, 111):
        if step == 111:
            choose_only(model, [1, 3])
        with tally.counting():
            model(TOKENS)
        dead.append(tally.look(step, alone).routers[0].dead)
    assert dead == [[], [], [1, 3], []]


def test_what_was_summed_up_before_the_run_went_back_is_of_no_step_that_holds(model: ArcticModel) -> None:
    module = LossModule(model)
    tally = Tally(module, ["books"], torch.device("cpu"))
    tally.expect([["books", "books"]])
    model.lm_head.weight.data[0, 0] = torch.nan  # type: ignore[union-attr]
    with tally.counting():
        module(TOKENS, TOKENS)
    tally.begin(3)
    look = tally.look(4, alone)
    assert (look.loss_by_source, look.routers) == ({}, [])


def test_losses_are_those_of_the_labels_of_each_source(model: ArcticModel) -> None:
    module = LossModule(model)
    tally = Tally(module, ["books", "code", "math"], torch.device("cpu"))
    tally.expect([["code", "books"], ["code", "code"]])
    first, second = torch.full((2, 24), IGNORED), TOKENS.clone()
    first[0, :5], first[1] = TOKENS[0, :5], TOKENS[1]
    for labels in (first, second):
        with tally.counting():
            module(TOKENS, labels)
    module(TOKENS, second)
    with torch.no_grad():
        log = model(TOKENS).log_softmax(-1)
    losses = -log.gather(-1, TOKENS[..., None])[..., 0]
    found = tally.look(1, alone).loss_by_source
    assert found == {
        "books": pytest.approx(float(losses[1].mean()), rel=1e-5),
        "code": pytest.approx(float((losses[0, :5].sum() + losses.sum()) / 53), rel=1e-5),
    }
    assert tally.look(2, alone).loss_by_source == {}
