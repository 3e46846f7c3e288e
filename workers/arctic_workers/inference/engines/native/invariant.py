"""Layers whose result for a token does not depend, to the last bit, on what other tokens share the step.

What depends on the shape on CPUs (measured on AVX2 and MKL, 1 and 2 threads; a unit test looks again wherever it runs):
 - a matrix product of fewer than 4 rows, or the rows left over where threads share them out, uses other kernels, which
   add in another order: rows are padded to a multiple of 16;
 - MKL, where an Intel processor has AVX2 alone, adds in another order from 48 rows on: its strict mode does not;
 - `silu` and `sigmoid` compute the last elements of an array by other code than the rest: `x / (1 + exp(-x))` does not;
 - a product over keys splits their number into blocks: `cache.py` adds up blocks of its own.
Norms, softmax, rotary positions and the sum over a token's experts are the same for any number of rows.

FP8 weights are what is loaded and computed with, value for value, but where memory allows they are kept as fp32 (exact:
every e4m3 number is an fp32 number), because converting a matrix for each product costs far more than the product.
Scales of channels are applied to outputs either way, those of blocks to the weights, so both ways give the same bits.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from arctic_model.fp8 import Block, Fp8Experts, Fp8Linear, dequantize, scale_name
from arctic_model.layers import MLP
from arctic_model.moe import Experts, expert_by_expert

ROWS = 16
"""Products have a multiple of so many rows."""

# MKL reads it at a process's first product (oneMKL's developer guide, "Obtaining Numerically Reproducible Results").
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def pad_rows(x_SD: Tensor) -> Tensor:
    """Append zeros up to a multiple of `ROWS`; in the last but one dimension."""
    return functional.pad(x_SD, (0, 0, 0, -x_SD.shape[-2] % ROWS))


def silu(x: Tensor) -> Tensor:
    """`x * sigmoid(x)`, for every element alike."""
    return x / (1 + torch.exp(-x))


@dataclass(frozen=True)
class Weight:
    """A matrix [out, in], or a stack of them."""

    values: Tensor
    scale: Tensor | None
    """A number for each output or block."""
    block: Block | None

    def of_expert(self, index: int) -> Weight:
        """Return one matrix of a stack."""
        return Weight(self.values[index], None if self.scale is None else self.scale[index], self.block)

    def product(self, x_SD: Tensor) -> Tensor:
        """`x @ (values * scale).T` of padded rows."""
        if self.scale is not None and self.block is not None:
            return functional.linear(x_SD, dequantize(self.values, self.scale, self.block))
        y = functional.linear(x_SD, self.values.to(x_SD.dtype))
        return y if self.scale is None else y * self.scale


class InvariantLinear(nn.Module):
    """A linear layer without bias."""

    def __init__(self, weight: Weight) -> None:
        super().__init__()
        self._weight = weight

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return [B, T, out], or [S, out] for [S, D]."""
        x_SD = x_BTD.flatten(0, -2)
        return self._weight.product(pad_rows(x_SD))[: x_SD.shape[0]].view(*x_BTD.shape[:-1], -1)


class InvariantMLP(nn.Module):
    """Gated MLP of invariant linear layers."""

    def __init__(self, w1: InvariantLinear, w2: InvariantLinear, w3: InvariantLinear) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = w1, w2, w3

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
        out: Tensor = self.w2(silu(self.w1(x_BTD)) * self.w3(x_BTD))
        return out


class InvariantExperts(nn.Module):
    """`Experts` with stacked weights."""

    def __init__(self, weights: dict[str, Weight]) -> None:
        super().__init__()
        self._weights = weights

    def forward(self, x_RD: Tensor, counts_E: Tensor) -> Tensor:
        """See `Experts.forward`."""

        def run(expert: int, x_rD: Tensor) -> Tensor:
            w1, w2, w3 = (self._weights[name].of_expert(expert) for name in ("w1", "w2", "w3"))
            padded = pad_rows(x_rD)
            return w2.product(silu(w1.product(padded)) * w3.product(padded))[: x_rD.shape[0]]

        return expert_by_expert(x_RD, counts_E, run)


def make_invariant(module: nn.Module, *, working_copy: bool) -> None:
    """Replace, in place, the layers of a loaded model by their invariant forms.

    With `working_copy`, weights become fp32, a matrix at a time; without it, each product converts what it needs.
    """
    for name, child in list(module.named_children()):
        replacement = _invariant(child, working_copy)
        if replacement is None:
            make_invariant(child, working_copy=working_copy)
        else:
            setattr(module, name, replacement)


def _invariant(module: nn.Module, working_copy: bool) -> nn.Module | None:
    if isinstance(module, nn.Linear | Fp8Linear):
        return _linear(module, working_copy)
    if isinstance(module, MLP):
        return InvariantMLP(*(_linear(getattr(module, name), working_copy) for name in ("w1", "w2", "w3")))
    if isinstance(module, Experts | Fp8Experts):
        return InvariantExperts({name: _weight(module, name, working_copy) for name in ("w1", "w2", "w3")})
    return None


def _linear(module: nn.Module, working_copy: bool) -> InvariantLinear:
    return InvariantLinear(_weight(module, "weight", working_copy))


def _weight(module: nn.Module, name: str, working_copy: bool) -> Weight:
    values = module.get_parameter(name).detach()
    scale: Tensor | None = getattr(module, scale_name(name), None)
    block: Block | None = getattr(module, "block", None)
    if not working_copy:
        return Weight(values, scale, block)
    if scale is not None and block is not None:
        return Weight(dequantize(values, scale, block), None, None)
    return Weight(values.float(), scale, None)
