"""Experts run in groups against experts run in a loop: torch multiplies groups on a CPU too, in a loop of its own."""

from collections.abc import Callable
from typing import NoReturn

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from arctic_model.config import ArcticConfig
from arctic_workers.training.experts import Company, ParallelExperts, journey, layer, products
from arctic_workers.training.experts.grouped import Groups, PlainProduct, ends_of
from arctic_workers.training.experts.products import Backlog, Shares, WeightGradients, Weights

HIDDEN, INNER, COUNTS = 16, 24, [3, 0, 4, 1]
ALL = slice(0, len(COUNTS))
CONFIG = ArcticConfig.preset("arctic-tiny").replace(
    hidden_size=HIDDEN, intermediate_size=INNER, num_local_experts=len(COUNTS), num_attention_heads=2
)


@pytest.fixture
def weights() -> Weights:
    torch.manual_seed(0)
    shapes = ((INNER, HIDDEN), (HIDDEN, INNER), (INNER, HIDDEN))
    return Weights(*(torch.randn(len(COUNTS), *shape, dtype=torch.bfloat16) for shape in shapes))


def rows(count: int = sum(COUNTS)) -> Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(1)).bfloat16()


def groups(counts: list[int], experts: slice = ALL) -> Groups:
    return Groups(ends_of(torch.tensor(counts)), experts, PlainProduct())


def passes(weights: Weights, *pieces: tuple[Shares, Tensor]) -> list[Tensor]:
    """Results and gradients of the rows of pieces, and the gradients of all weights."""
    made, found = WeightGradients(weights, Backlog()), []
    for shares, x_PD in pieces:
        y_PD, kept = products.forward(x_PD, shares, weights)
        again = products.enter(x_PD, shares, weights)
        assert all(map(torch.equal, kept, again))
        x_grad_PD, backward = products.backward(y_PD.neg(), shares, weights, kept)
        made.put_off(shares, kept, backward)
        found += [y_PD, x_grad_PD]
    return [*found, *made.finish()]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-2 * float(theirs.abs().max()))


def test_groups_compute_what_a_loop_does(weights: Weights) -> None:
    found, expected = (passes(weights, (shares, rows())) for shares in (groups(COUNTS), COUNTS))
    assert_same(found, expected)
    assert all(not gradient[1].any() for gradient in found[2:])  # of the expert without a row


def test_pieces_of_some_experts_are_put_side_by_side(weights: Weights) -> None:
    low, high = slice(0, 1), slice(1, 4)
    x_PD = rows()
    parts = passes(weights, (groups(COUNTS[high], high), x_PD[3:]), (groups(COUNTS[low], low), x_PD[:3]))
    together = passes(weights, (groups(COUNTS), x_PD))
    assert_same(parts[4:], together[2:])


def test_pieces_of_all_experts_are_added(weights: Weights) -> None:
    pieces = [(COUNTS, rows()), ([0, 0, 0, 0], rows(0)), ([2, 1, 0, 0], rows(3))]
    found = passes(weights, *((groups(counts), x_PD) for counts, x_PD in pieces))
    assert_same(found[-3:], passes(weights, *pieces)[-3:])


def layer_passes(config: ArcticConfig) -> list[Tensor]:
    """Results and gradients of a layer of one rank, in bf16."""
    torch.manual_seed(0)
    experts = ParallelExperts(config, 1, 0, 0, Company()).bfloat16()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    x_BTD = torch.randn(2, 9, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
    y_BTD, balance = experts(x_BTD)
    (y_BTD.float().square().sum() + balance).backward()
    assert not experts.company.backlog.work()
    return [y_BTD.detach(), *(each.grad for each in (x_BTD, *experts.parameters()) if each.grad is not None)]


@pytest.mark.parametrize("drops", [False, True])
def test_a_rank_by_itself_asks_nothing_of_its_device(drops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIG.replace(moe_token_dropping=True, moe_train_capacity_factor=0.5) if drops else CONFIG

    def asked(*_: object) -> NoReturn:
        raise AssertionError("the host asked its device for something")

    expected = layer_passes(config)
    monkeypatch.setattr(PlainProduct, "takes", lambda *_: True)
    monkeypatch.setattr(layer, "counts_on_host", asked)
    found = layer_passes(config)
    assert len(found) == 6
    assert_same(found, expected)


def test_the_company_says_how_groups_are_multiplied_and_weights_are_not_put_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    class Noting(PlainProduct):
        def takes(self, weights_EFD: Tensor) -> bool:
            return weights_EFD.shape == (len(COUNTS), INNER, HIDDEN)

        def rows(self, x_PM: Tensor, weights_EMN: Tensor, ends_E: Tensor) -> Tensor:
            assert int(ends_E[-1]) == len(x_PM)  # what is beyond would be left as it was
            asked.append("rows")
            return super().rows(x_PM, weights_EMN, ends_E)

        def weight_gradient(self, left_PM: Tensor, right_PN: Tensor, ends_E: Tensor) -> Tensor:
            asked.append("weights")
            return super().weight_gradient(left_PM, right_PN, ends_E)

    def summed(*arguments: Tensor, to_tokens: Callable[..., Tensor] = journey._summed) -> Tensor:
        asked.append("tokens")
        return to_tokens(*arguments)

    monkeypatch.setattr(journey, "_summed", summed)
    config = CONFIG.replace(moe_token_dropping=True, moe_train_capacity_factor=0.5)
    experts = ParallelExperts(config, 1, 0, 0, Company(product=Noting())).bfloat16()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    experts(torch.randn(2, 9, HIDDEN, dtype=torch.bfloat16, requires_grad=True))[0].sum().backward()
    assert asked == [*["rows"] * 3, *["rows"] * 3, *["weights"] * 3, "tokens"]


def test_what_is_run_in_groups_is_in_bf16_on_a_gpu_and_fits_the_loads_of_a_kernel() -> None:
    def case(device: str, dtype: torch.dtype, hidden: int) -> bool:
        return PlainProduct().takes(torch.empty(2, 16, hidden, device=device, dtype=dtype))

    with FakeTensorMode():
        assert case("cuda", torch.bfloat16, 24)
        assert not case("cpu", torch.bfloat16, 24)
        assert not case("cuda", torch.float32, 24)
        assert not case("cuda", torch.bfloat16, 20)
