import pytest
import torch
from torch import Tensor

from arctic_model.moe import Experts
from arctic_workers.training.experts import products
from arctic_workers.training.experts.products import Backlog, WeightGradients, Weights

COUNTS = [3, 0, 4]


def random_experts(count: int) -> Experts:
    torch.manual_seed(0)
    experts = Experts(count, 8, 6)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    return experts


@pytest.fixture
def experts() -> Experts:
    return random_experts(len(COUNTS))


def weights_of(experts: Experts) -> Weights:
    return Weights(experts.w1.detach(), experts.w2.detach(), experts.w3.detach())


def test_passes_are_those_of_the_model(experts: Experts) -> None:
    x_PD = torch.randn(sum(COUNTS), 8, requires_grad=True)
    y_PD = experts(x_PD, torch.tensor(COUNTS))
    y_grad_PD = torch.randn_like(y_PD)
    y_PD.backward(y_grad_PD)
    weights = weights_of(experts)
    mine_PD, kept = products.forward(x_PD.detach(), COUNTS, weights)
    torch.testing.assert_close(mine_PD, y_PD.detach())
    x_grad_PD, made = products.backward(y_grad_PD, COUNTS, weights, kept)
    torch.testing.assert_close(x_grad_PD, x_PD.grad)
    gradients = WeightGradients(weights, Backlog())
    gradients.put_off(COUNTS, kept, made)
    for mine, parameter in zip(gradients.finish(), (experts.w1, experts.w2, experts.w3), strict=True):
        torch.testing.assert_close(mine, parameter.grad)


def test_no_bit_depends_on_whose_rows_are_beside_an_experts() -> None:
    weights = weights_of(random_experts(40))
    x_PD, y_grad_PD = torch.randn(2, 40, 8).unbind()

    def passes(rows: slice) -> tuple[Tensor, Tensor]:
        counts = [int(expert in range(40)[rows]) for expert in range(40)]
        y_PD, kept = products.forward(x_PD[rows], counts, weights)
        return y_PD, products.backward(y_grad_PD[rows], counts, weights, kept)[0]

    for whole, *parts in zip(passes(slice(None)), *(passes(slice(i, i + 1)) for i in range(40)), strict=True):
        assert torch.equal(whole, torch.cat(parts))


def test_gradients_of_weights_do_not_depend_on_when_there_was_time(experts: Experts) -> None:
    weights = weights_of(experts)

    def gradients(eager: bool) -> list[Tensor]:
        torch.manual_seed(1)
        backlog = Backlog()
        made = WeightGradients(weights, backlog)
        for _ in range(2):
            y_PD, kept = products.forward(torch.randn(sum(COUNTS), 8), COUNTS, weights)
            made.put_off(COUNTS, kept, products.backward(torch.randn_like(y_PD), COUNTS, weights, kept)[1])
            while eager and backlog.work():
                pass
        return list(made.finish())

    for one, other in zip(gradients(eager=True), gradients(eager=False), strict=True):
        assert torch.equal(one, other)
        assert not one[1].any()
