"""Regions: called as they are, or compiled; here to torch's own operators, which takes no kernels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from arctic_model import regions
from arctic_model.layers import MLP, RMSNorm, rotate_both
from arctic_model.recompute import _Part, recomputed
from arctic_model.regions import compile_on, region

HIDDEN = 16

# What torch's compiler says of itself, where pytest makes it an error.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Compile to torch's own operators, in the order of autograd's compiler; returns what was compiled."""
    monkeypatch.setattr(regions, "_compiled_on", set())
    names: list[str] = []
    compiler = torch.compile

    def compile_and_note(function: Callable[..., Any]) -> Callable[..., Any]:
        names.append(function.__name__)
        return compiler(function, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile_and_note)
    return names


def test_a_region_is_compiled_once_and_on_the_devices_alone_that_were_named(compiled: list[str]) -> None:
    @region
    def doubled(x: Tensor) -> Tensor:
        return 2 * x

    x = torch.ones(3)
    assert torch.equal(doubled(x), 2 * x)
    compile_on("cuda")
    assert torch.equal(doubled(x), 2 * x)
    assert compiled == []
    compile_on("cpu")
    for _ in range(2):
        assert torch.equal(doubled(x), 2 * x)
    assert compiled == ["doubled"]


class Part(nn.Module):
    """What a layer computes between exchanges, of regions and matmuls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = RMSNorm(HIDDEN, 1e-5)
        self.mlp = MLP(HIDDEN, 2 * HIDDEN)

    def forward(self, x_BTD: Tensor) -> Tensor:
        q_BTNH, _ = rotate_both(*(self.norm(x_BTD).unflatten(-1, (2, -1)),) * 2, *torch.ones(2, 2, 5, HIDDEN // 2))
        out: Tensor = x_BTD + self.mlp(self.norm(q_BTNH.flatten(-2)))
        return out


def passes(recomputes: bool) -> list[Tensor]:
    """The result, and the gradients of input and weights, of three layers that share a part."""
    part, x_BTD = Part(), torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(1)).requires_grad_()
    y_BTD = x_BTD
    for _ in range(3):
        y_BTD = recomputed(part, y_BTD) if recomputes else part(y_BTD)
    torch.autograd.backward(y_BTD.square().mean())
    gradients = [tensor.grad for tensor in (x_BTD, *part.parameters())]
    return [y_BTD.detach(), *(gradient for gradient in gradients if gradient is not None)]


@pytest.mark.parametrize("recomputes", [True, False])
def test_compiled_regions_compute_the_same_and_may_be_computed_again(recomputes: bool) -> None:
    expected = passes(recomputes=False)
    compile_on("cpu")
    got = passes(recomputes)
    assert len(got) == len(expected) == 6
    for mine, plain in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


def test_all_that_compiled_regions_keep_is_given_up_where_it_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_on("cpu")
    part, x_BTD = Part(), torch.randn(2, 5, HIDDEN, requires_grad=True)
    kept: list[torch.Size] = []
    given_up: list[torch.Size] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    def give_up(self: _Part, tensor: Tensor, pack: Callable[[_Part, Tensor], int] = _Part.pack) -> int:
        given_up.append(tensor.shape)
        return pack(self, tensor)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        part(x_BTD)
    monkeypatch.setattr(_Part, "pack", give_up)
    recomputed(part, x_BTD)
    assert given_up == kept
    assert len(kept) > len(list(part.parameters()))
