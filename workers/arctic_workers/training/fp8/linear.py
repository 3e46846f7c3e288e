"""Linear layers that are trained with products in FP8.

Forward `y = x w^T`, backward `dx = dy w` and `dw = dy^T x`: each operand is rounded along what its product sums over,
so inputs, weights and gradients are rounded twice, by rows and by columns. Of an input the rounded columns are what is
kept for the backward pass, in half the bytes of bf16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from arctic_model.rounded import Rounded, product
from arctic_workers.training.fp8.rounding import Last, by_both, by_columns, by_rows


class RoundedLinear(nn.Linear):
    """A linear layer without bias whose products are in FP8; its weight is as it was."""

    def __init__(self, base: nn.Linear, last: Last[tuple[Rounded, Rounded]]) -> None:
        """Take the weight of `base` over, the parameter itself; `last` is `last_input()`, the same for all layers."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight = base.weight
        self.register_parameter("bias", None)
        self._last = last

    def forward(self, x: Tensor) -> Tensor:
        """Return `x w^T` in the dtype of x [..., K]."""
        if torch.is_grad_enabled():
            rows_SK, columns_KS = self._last.of(x)
            y_SN: Tensor = cast("Callable[..., Tensor]", _Product.apply)(
                x.flatten(0, -2), self.weight, rows_SK, columns_KS
            )
        else:
            y_SN = product(by_rows(x.flatten(0, -2)), by_rows(self.weight), x.dtype, forward=True)
        return y_SN.view(*x.shape[:-1], -1)


def last_input() -> Last[tuple[Rounded, Rounded]]:
    """Return what rounds inputs [..., K], each once: queries, keys and values multiply the same, as MLPs' halves do."""
    return Last(lambda x: by_both(x.detach().flatten(0, -2)))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_SK: Tensor, w_NK: Tensor, rows_SK: Rounded, columns_KS: Rounded) -> Tensor:
        ctx.save_for_backward(w_NK, *columns_KS)
        return product(rows_SK, by_rows(w_NK), x_SK.dtype, forward=True)

    @staticmethod
    def backward(ctx: Any, y_grad_SN: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        w_NK, *columns_KS = ctx.saved_tensors
        rows_SN, columns_NS = by_both(y_grad_SN)
        x_grad_SK = w_grad_NK = None
        if ctx.needs_input_grad[0]:
            x_grad_SK = product(rows_SN, by_columns(w_NK), y_grad_SN.dtype, forward=False)
        if ctx.needs_input_grad[1]:
            w_grad_NK = product(columns_NS, Rounded(*columns_KS), w_NK.dtype, forward=False)
        return x_grad_SK, w_grad_NK, None, None
