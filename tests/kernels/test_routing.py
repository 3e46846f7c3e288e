"""The choice of experts under Triton's interpreter, against the model's own."""

import pytest
import torch
from torch import Tensor

from arctic_model.moe import Router
from arctic_workers.inference.engines.native.cuda.products import SMALL
from arctic_workers.inference.engines.native.cuda.routing import TOKENS, Routes, route, weighted_sum

SHAPES = [
    pytest.param(1, 8, 2, id="a token"),
    pytest.param(TOKENS, 6, 3, id="as many as one kernel does"),
    pytest.param(TOKENS + 1, 5, 2, id="one more"),
    pytest.param(600, 4, 2, id="many"),
    pytest.param(7, 3, 3, id="all experts"),
    pytest.param(9, 8, 1, id="one expert each"),
]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def chosen_by(routes: Routes) -> Tensor:
    """Return the experts of each choice as the tiles have them, [S, K]; checks that each slot is in one tile."""
    experts_R = torch.full((routes.places_SK.numel(),), -1)
    for expert, first, count in routes.tiles.table_M3.tolist():
        assert count <= routes.tiles.size
        assert (experts_R[first : first + count] == -1).all()
        experts_R[first : first + count] = expert
    return experts_R[routes.places_SK]


def check(routes: Routes, experts_SK: Tensor) -> None:
    """Check the choice, and that slots are sorted by expert, then by token."""
    assert torch.equal(chosen_by(routes), experts_SK)
    order_R = experts_SK.flatten().argsort(stable=True)
    assert torch.equal(routes.places_SK.flatten().long(), order_R.argsort())
    assert routes.tiles.rows_R is not None
    assert torch.equal(routes.tiles.rows_R.long(), order_R // experts_SK.shape[1])


@pytest.mark.parametrize(("tokens", "experts", "chosen"), SHAPES)
@pytest.mark.parametrize("size", [SMALL, 32])
def test_choices_are_the_models(tokens: int, experts: int, chosen: int, size: int) -> None:
    router = Router(12, experts, chosen)
    x_SD = torch.randn(tokens, 12) * 4
    routing = router(x_SD)
    routes = route(router.gate(x_SD).detach(), chosen, size)
    check(routes, routing.experts_SK)
    torch.testing.assert_close(routes.weights_SK, routing.weights_SK.detach(), rtol=1e-6, atol=0.0)
    assert len(routes.tiles.table_M3) == min(tokens * chosen, experts) + tokens * chosen // size


@pytest.mark.parametrize("tokens", [3, 40])
def test_of_equal_logits_the_first_experts_are_chosen(tokens: int) -> None:
    logits_SE = torch.randint(0, 2, (tokens, 9)).float()
    logits_SE[0] = 1.0
    routes = route(logits_SE, 3, SMALL)
    experts_SK = logits_SE.argsort(dim=-1, descending=True, stable=True)[:, :3]
    check(routes, experts_SK)
    picked_SK = logits_SE.gather(1, experts_SK)
    torch.testing.assert_close(routes.weights_SK, picked_SK.softmax(-1))
    wanted_SK, _ = logits_SE.softmax(-1).topk(3)
    torch.testing.assert_close(routes.weights_SK, wanted_SK / wanted_SK.sum(-1, keepdim=True))


@pytest.mark.parametrize("tokens", [5, 90])
def test_experts_that_all_or_nobody_chose_have_their_tiles(tokens: int) -> None:
    logits_SE = torch.zeros(tokens, 6)
    logits_SE[:, 4] = 9.0
    logits_SE[:, 1] = 7.0
    routes = route(logits_SE, 2, SMALL)
    check(routes, torch.tensor([4, 1]).expand(tokens, 2))
    busy = [entry for entry in routes.tiles.table_M3.tolist() if entry[2]]
    assert {expert for expert, _, _ in busy} == {1, 4}
    assert len(busy) == 2 * -(-tokens // SMALL)


def test_no_tokens_have_no_routes() -> None:
    routes = route(torch.empty(0, 4), 2, SMALL)
    assert routes.tiles.table_M3.shape == (0, 3)
    assert weighted_sum(torch.empty(0, 8), routes).shape == (0, 8)


@pytest.mark.parametrize(("tokens", "chosen", "size"), [(1, 2, 30), (20, 3, 1500)])
def test_results_are_summed_by_weight_in_the_order_of_choice(tokens: int, chosen: int, size: int) -> None:
    routes = route(torch.randn(tokens, 5), chosen, SMALL)
    y_RD = torch.randn(tokens * chosen, size)
    wanted_SD = torch.zeros(tokens, size)
    for choice in range(chosen):
        wanted_SD += y_RD[routes.places_SK[:, choice]] * routes.weights_SK[:, choice, None]
    assert torch.equal(weighted_sum(y_RD, routes), wanted_SD)
