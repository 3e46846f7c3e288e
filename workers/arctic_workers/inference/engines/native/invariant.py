"""Layers whose result for a token does not depend, to the last bit, on what other tokens share the step.

What depends on the shape on CPUs (measured on AVX2 and MKL, 1 and 2 threads; a unit test looks again wherever it runs):
 - a matrix product of fewer than 4 rows, or the rows left over where threads share them out, uses other kernels, which
   add in another order: rows are padded to a multiple of 16;
 - `silu` and `sigmoid` compute the last elements of an array by other code than the rest: `x / (1 + exp(-x))` does not;
 - a product over keys splits their number into blocks: `cache.py` adds up blocks of its own.
Norms, softmax, rotary positions and the sum over a token's experts are the same for any number of rows.

FP8 weights are what is loaded and computed with, value for value, but where memory allows they are kept as fp32 (exact:
every e4m3 number is an fp32 number), because converting a matrix for each product costs far more than the product.
Scales are applied to outputs either way, so both ways give the same bits.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from arctic_model.fp8 import Fp8Experts, Fp8Linear
from arctic_model.layers import MLP
from arctic_model.moe import Experts, expert_by_expert

ROWS = 16
"""Products have a multiple of so many rows."""


def pad_rows(x_SD: Tensor) -> Tensor:
    """Append zeros up to a multiple of `ROWS`; in the last but one dimension."""
    return functional.pad(x_SD, (0, 0, 0, -x_SD.shape[-2] % ROWS))


def silu(x: Tensor) -> Tensor:
    """`x * sigmoid(x)`, for every element alike."""
    return x / (1 + torch.exp(-x))


def product(x_SD: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    """`x @ (weight * scale).T` of padded rows; the scale is a number for each output."""
    y = functional.linear(x_SD, weight.to(x_SD.dtype))
    return y if scale is None else y * scale


class InvariantLinear(nn.Module):
    """A linear layer without bias."""

    weight: Tensor
    scale: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return [B, T, out], or [S, out] for [S, D]."""
        x_SD = x_BTD.flatten(0, -2)
        return product(pad_rows(x_SD), self.weight, self.scale)[: x_SD.shape[0]].view(*x_BTD.shape[:-1], -1)


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
    """`Experts` with stacked weights and, of FP8, their scales."""

    def __init__(self, weights: dict[str, Tensor], scales: dict[str, Tensor | None]) -> None:
        super().__init__()
        self._weights = weights
        self._scales = scales

    def forward(self, x_RD: Tensor, counts_E: Tensor) -> Tensor:
        """See `Experts.forward`."""

        def run(expert: int, x_rD: Tensor) -> Tensor:
            def matrix(name: str, x: Tensor) -> Tensor:
                scale = self._scales[name]
                return product(x, self._weights[name][expert], None if scale is None else scale[expert])

            padded = pad_rows(x_rD)
            return matrix("w2", silu(matrix("w1", padded)) * matrix("w3", padded))[: x_rD.shape[0]]

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
        names = ("w1", "w2", "w3")
        weights = {name: _weight(module.get_parameter(name), working_copy) for name in names}
        return InvariantExperts(weights, {name: getattr(module, f"{name}_scale", None) for name in names})
    return None


def _linear(module: nn.Module, working_copy: bool) -> InvariantLinear:
    weight = _weight(module.get_parameter("weight"), working_copy)
    return InvariantLinear(weight, getattr(module, "weight_scale", None))


def _weight(parameter: nn.Parameter, working_copy: bool) -> Tensor:
    weight = parameter.detach()
    return weight.float() if working_copy else weight
