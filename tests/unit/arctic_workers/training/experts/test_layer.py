import pytest
import torch
from torch import Tensor

from arctic_model.config import ArcticConfig
from arctic_model.moe import MoE
from arctic_workers.training.experts import Company, ParallelExperts

CONFIG = ArcticConfig.preset("arctic-tiny").replace(hidden_size=8, intermediate_size=6, num_local_experts=4)


def made(config: ArcticConfig) -> ParallelExperts:
    torch.manual_seed(0)
    layer = ParallelExperts(config, 1, 0, 0, Company())
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


@pytest.fixture
def mine() -> ParallelExperts:
    return made(CONFIG)


def passes(layer: MoE | ParallelExperts, x_BTD: Tensor) -> list[Tensor | None]:
    """Results, and gradients of the input and of all parameters."""
    x_BTD = x_BTD.clone().requires_grad_()
    y_BTD, balance = layer(x_BTD)
    (y_BTD.square().sum() + balance).backward()
    return [y_BTD, balance, x_BTD.grad, *(parameter.grad for _, parameter in sorted(layer.named_parameters()))]


def assert_same(found: Tensor, expected: Tensor) -> None:
    """As far as rounding goes, which is that of the largest terms of a sum, and each machine's own."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.detach().abs().max()))


@pytest.mark.parametrize("frozen", [False, True])
def test_one_rank_computes_what_the_model_does_and_leaves_no_work_behind(mine: ParallelExperts, frozen: bool) -> None:
    model = MoE(CONFIG)
    model.load_state_dict(mine.state_dict())
    for layer in (mine, model):
        layer.experts.requires_grad_(not frozen)
    x_BTD = torch.randn(2, 5, 8)
    for found, expected in zip(passes(mine, x_BTD), passes(model, x_BTD), strict=True):
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            assert_same(found, expected)
    assert not mine.company.backlog.work()


def test_choices_beyond_a_capacity_travel_nowhere_and_count_as_nothing() -> None:
    config = CONFIG.replace(moe_token_dropping=True, moe_train_capacity_factor=0.5)
    mine, model = made(config), MoE(config)
    model.router.capacity = config.capacity  # which by itself it has not: inference drops nothing
    model.load_state_dict(mine.state_dict())
    x_BTD = torch.randn(2, 9, 8)
    dispatched = mine.dispatch(x_BTD)
    kept_SK = dispatched.routing.kept_SK
    assert kept_SK is not None
    assert sum(dispatched.journey.sizes) == int(kept_SK.sum()) < kept_SK.numel()
    assert not kept_SK.any(1).all()  # so that some token has no expert at all
    for found, expected in zip(passes(mine, x_BTD), passes(model, x_BTD), strict=True):
        assert found is not None
        assert expected is not None
        assert_same(found, expected)


def test_experts_that_are_run_again_for_the_backward_pass_give_the_same_bits(mine: ParallelExperts) -> None:
    x_BTD = torch.randn(2, 9, 8)
    kept = passes(mine, x_BTD)
    mine.zero_grad()
    mine.experts.recomputes = True
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        again = passes(mine, x_BTD)
    assert all(map(torch.equal, kept, again))
    assert CONFIG.intermediate_size not in {tensor.shape[-1] for tensor in saved if tensor.dim() == 2}
