"""Rounding to FP8 and its products on this card against those of the CPU, which `tests/unit` holds to a reference."""

import pytest
import torch
from torch import Tensor, nn

from arctic_model.rounded import Rounded
from arctic_workers.training.fp8.experts import RoundedProduct
from arctic_workers.training.fp8.linear import RoundedLinear, last_input
from arctic_workers.training.fp8.rounding import by_both, by_columns, by_rows

CPU = torch.device("cpu")
SUMS = 2e-2
"""What sums with fewer bits, and results in bf16, may be off, relative to the greatest."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def assert_near(found: Tensor, expected: Tensor) -> None:
    bound = SUMS * float(expected.abs().max())
    assert float((found.cpu().float() - expected.float()).abs().max()) <= bound


def assert_same(found: Rounded, expected: Rounded) -> None:
    assert torch.equal(found.widened().cpu(), expected.widened())
    assert torch.equal(found.scales.cpu(), expected.scales)


@pytest.mark.parametrize("shape", [(1, 16), (37, 272), (4096, 2048)])
def test_rounding_is_the_cpus_to_the_bit(gpu: torch.device, shape: tuple[int, int]) -> None:
    x_NK = (torch.randn(shape) * torch.exp(6 * torch.randn(shape[0], 1))).bfloat16()
    for found, expected in zip(by_both(x_NK.to(gpu)), by_both(x_NK), strict=True):
        assert_same(found, expected)
    stack = torch.randn(3, 48, shape[1]).bfloat16()
    assert_same(by_columns(stack.to(gpu)), by_columns(stack))
    assert_same(by_rows(stack.to(gpu)), by_rows(stack))


@pytest.mark.parametrize("tokens", [1, 45, 4096])
def test_a_linear_layer_is_the_cpus(gpu: torch.device, tokens: int) -> None:
    weight, x_SK, y_grad_SN = (torch.randn(size).bfloat16() for size in ((528, 272), (tokens, 272), (tokens, 528)))

    def passes(device: torch.device) -> list[Tensor]:
        base = nn.Linear(272, 528, bias=False, device=device, dtype=torch.bfloat16)
        base.weight.data.copy_(weight)
        layer, x = RoundedLinear(base, last_input()), x_SK.to(device).requires_grad_()
        y = layer(x)
        y.backward(y_grad_SN.to(device))
        return [y.detach(), x.grad, layer.weight.grad]

    for found, expected in zip(passes(gpu), passes(CPU), strict=True):
        assert_near(found, expected)


@pytest.mark.parametrize("counts", [[300, 0, 5, 1000], [1, 1, 1, 1], [0, 0, 0, 64]], ids=str)
def test_experts_products_are_the_cpus(gpu: torch.device, counts: list[int]) -> None:
    rows = sum(counts)
    w_EFD, x_PD, y_grad_PF = (torch.randn(size).bfloat16() for size in ((4, 272, 528), (rows, 528), (rows, 272)))
    ends_E = torch.tensor(counts).cumsum(0, dtype=torch.int32)

    def passes(device: torch.device) -> list[Tensor]:
        product = RoundedProduct()
        w, x, y_grad, ends = (part.to(device) for part in (w_EFD, x_PD, y_grad_PF, ends_E))
        y, x_grad = product.rows(x, w.mT, ends), product.rows(y_grad, w, ends)
        return [y, x_grad, product.weight_gradient(y_grad, x, ends)]

    results = passes(gpu)
    assert not results[-1][[not count for count in counts]].any()
    for found, expected in zip(results, passes(CPU), strict=True):
        assert_near(found, expected)
