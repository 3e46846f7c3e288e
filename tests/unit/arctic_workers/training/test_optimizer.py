import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from arctic_workers.training import optimizer
from arctic_workers.training.optimizer import UnpartitionedAdamW

BETAS, EPSILON, RATE = (0.9, 0.95), 1e-8, 1e-2


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 3), (7,))]


def groups(of: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": of[:1], "weight_decay": 0.1, "lr": RATE}, {"params": of[1:], "weight_decay": 0.0, "lr": RATE}]


def give(to: list[nn.Parameter], scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in to:
        parameter.grad = torch.randn(parameter.shape, generator=generator) * scale


def detached(of: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in of]


@pytest.mark.parametrize("clipping", [0.0, 1.0])
def test_updates_are_those_of_torch_with_clipped_gradients(clipping: float) -> None:
    mine, theirs = parameters(), parameters()
    ours = UnpartitionedAdamW(groups(mine), BETAS, EPSILON, clipping)
    plain = torch.optim.AdamW(groups(theirs), betas=BETAS, eps=EPSILON)
    for step, scale in enumerate((10.0, 0.01, 3.0)):  # clipped, not clipped, clipped
        give(mine, scale, step)
        give(theirs, scale, step)
        norm = nn.utils.clip_grad_norm_(theirs, clipping or math.inf)
        ours.step()
        plain.step()
        assert ours._global_grad_norm == pytest.approx(float(norm), rel=1e-6)
    for got, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)
    assert ours.steps == 3


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_an_update_whose_gradient_is_not_finite_is_left_out_and_not_counted(bad: float) -> None:
    mine = parameters()
    ours = UnpartitionedAdamW(groups(mine), BETAS, EPSILON, 1.0)
    give(mine, 1.0, 0)
    ours.step()
    before = detached(mine)
    give(mine, 1.0, 1)
    assert mine[1].grad is not None
    mine[1].grad[2] = bad
    ours.step()
    assert (ours.overflow, ours._global_grad_norm, ours.steps) == (True, math.inf, 1)
    assert all(map(torch.equal, detached(mine), before))
    give(mine, 1.0, 2)
    ours.step()
    assert (ours.overflow, ours.steps) == (False, 2)
    assert not torch.equal(mine[0], before[0])


def test_an_update_that_is_held_is_left_out_whatever_its_gradient() -> None:
    mine = parameters()
    ours = UnpartitionedAdamW(groups(mine), BETAS, EPSILON, 1.0)
    before = detached(mine)
    give(mine, 1.0, 0)
    ours.holds = True
    ours.step()
    assert (ours.overflow, ours.steps) == (True, 0)
    assert all(map(torch.equal, detached(mine), before))
    ours.holds = False
    ours.step()
    assert (ours.overflow, ours.steps) == (False, 1)
    assert not torch.equal(mine[0], before[0])


def test_masters_learn_what_their_parameters_in_bf16_can_not_hold() -> None:
    narrow = [nn.Parameter(parameter.detach().bfloat16()) for parameter in parameters()]
    wide = [nn.Parameter(parameter.detach().float()) for parameter in narrow]
    ours = UnpartitionedAdamW(groups(narrow), BETAS, EPSILON, 1.0)
    theirs = UnpartitionedAdamW(groups(wide), BETAS, EPSILON, 1.0)
    for step in range(3):
        for parameter, other in zip(narrow, wide, strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)).bfloat16()
            other.grad = parameter.grad.float()
        ours.step()
        theirs.step()
    assert ours.steps == 3
    for parameter, other in zip(narrow, wide, strict=True):
        torch.testing.assert_close(ours.masters[parameter], other.detach(), rtol=1e-6, atol=1e-7)
        assert torch.equal(parameter, ours.masters[parameter].bfloat16())
        assert not torch.equal(parameter.float(), ours.masters[parameter])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_an_update_is_compiled_for_sizes_but_not_for_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounter()
    compiled = torch.compile(optimizer._update.__wrapped__, backend=counter)  # type: ignore[attr-defined]
    monkeypatch.setattr(optimizer, "_update", compiled)
    shapes = ((32,), (1, 32), (5, 32), (2, 3, 32), (4, 8, 16), (96,))
    narrow = [nn.Parameter(torch.ones(shape).bfloat16()) for shape in shapes]
    ours = UnpartitionedAdamW(groups(narrow), BETAS, EPSILON, 1.0)
    for step in range(4):
        for group in ours.param_groups:
            group["lr"] = RATE * (step + 1)
        for parameter in narrow:
            parameter.grad = torch.full_like(parameter, step + 1)
        ours.step()
    assert ours.steps == 4
    assert counter.frame_count == 2  # for one size, and for all


def test_the_largest_are_updated_first_whatever_their_group(monkeypatch: pytest.MonkeyPatch) -> None:
    updated: list[int] = []
    monkeypatch.setattr(optimizer, "_update", lambda parameter, *_: updated.append(parameter.numel()))
    narrow = [nn.Parameter(torch.ones(rows, 16).bfloat16()) for rows in (2, 1, 5, 3)]
    ours = UnpartitionedAdamW(groups(narrow), BETAS, EPSILON, 1.0)
    for parameter in narrow:
        parameter.grad = parameter.detach()
    ours.step()
    assert updated == [80, 48, 32, 16]


def test_parameters_follow_masters_that_were_restored() -> None:
    narrow = [nn.Parameter(parameter.detach().bfloat16()) for parameter in parameters()]
    ours = UnpartitionedAdamW(groups(narrow), BETAS, EPSILON, 1.0)
    for master in ours.masters.values():
        master.fill_(0.5)
    ours.write_back()
    assert all(bool((parameter == 0.5).all()) for parameter in narrow)
