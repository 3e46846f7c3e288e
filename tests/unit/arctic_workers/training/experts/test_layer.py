import pytest
import torch
from torch import Tensor

from arctic_model.config import ArcticConfig
from arctic_model.moe import MoE
from arctic_workers.training.experts import Company, ParallelExperts

CONFIG = ArcticConfig.preset("arctic-tiny").replace(hidden_size=8, intermediate_size=6, num_local_experts=4)


@pytest.fixture
def mine() -> ParallelExperts:
    torch.manual_seed(0)
    layer = ParallelExperts(CONFIG, 1, 0, 0, Company())
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


def passes(layer: MoE | ParallelExperts, x_BTD: Tensor) -> list[Tensor | None]:
    """Results, and gradients of the input and of all parameters."""
    x_BTD = x_BTD.clone().requires_grad_()
    y_BTD, balance = layer(x_BTD)
    (y_BTD.square().sum() + balance).backward()
    return [y_BTD, balance, x_BTD.grad, *(parameter.grad for _, parameter in sorted(layer.named_parameters()))]


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
            torch.testing.assert_close(found, expected)
    assert not mine.company.backlog.work()
