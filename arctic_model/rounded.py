"""Products of matrices that are rounded to FP8: on GPUs by their units for it, on CPUs of the same numbers in fp32.

Sums are fp32. NVIDIA's Hopper can add faster, with fewer bits: forward it does, and not for gradients, as Transformer
Engine has it (`_2X_ACC_FPROP`, `_2X_ACC_DGRAD` and `_2X_ACC_WGRAD` of its modules).

What torch asks for (2.11 to 2.13: `aten/src/ATen/native/cuda/ScaledBlas.cpp`, `GroupedBlas.cpp`, `GroupMMCommon.cuh`):
rows of both operands side by side in memory, so that the second one, turned round, is column-major; fp32 scales
[M, 1] and [1, N], of groups [P] and [E, N]; sizes, but for M and P, that are multiples of 16. Shapes are named by the
legend of `arctic_model.layers`; P are rows that are sorted by group, N and K any features.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from arctic_model.devices import Wait, counts_on_host

MULTIPLE = 16
"""Of which the sides of matrices are multiples."""


class Rounded(NamedTuple):
    """Matrices whose rows are `values * scales`."""

    values: Tensor
    """e4m3 [..., N, K]; of each row the elements are side by side."""
    scales: Tensor
    """fp32 [..., N]."""

    def widened(self) -> Tensor:
        """Return the matrices in fp32."""
        return self.values.float() * self.scales[..., None]


def product(left_MK: Rounded, right_NK: Rounded, dtype: torch.dtype, *, forward: bool) -> Tensor:
    """Return the sums along rows of each row of one matrix times each of another: [M, N] in a dtype."""
    if not left_MK.values.is_cuda:
        return torch.mm(left_MK.widened(), right_NK.widened().t()).to(dtype)
    return torch._scaled_mm(
        left_MK.values,
        right_NK.values.t(),
        scale_a=left_MK.scales[:, None],
        scale_b=right_NK.scales[None, :],
        out_dtype=dtype,
        use_fast_accum=forward,
    )


def product_of_groups(
    x_PK: Rounded, weights_ENK: Rounded, ends_E: Tensor, dtype: torch.dtype, *, forward: bool
) -> Tensor:
    """Return the products of each row of x with the rows of its group's matrix: [P, N] in a dtype.

    `ends_E` are the rows after which groups end.
    """
    if at_once(x_PK.values.device):
        return torch._scaled_grouped_mm(
            x_PK.values,
            weights_ENK.values.mT,
            x_PK.scales,
            weights_ENK.scales,
            offs=ends_E,
            out_dtype=dtype,
            use_fast_accum=forward,
        )
    y_PN = x_PK.values.new_empty((x_PK.values.shape[0], weights_ENK.values.shape[1]), dtype=dtype)
    for (start, end), *weights in zip(pairwise(bounds_of(ends_E)), *weights_ENK, strict=True):
        if end > start:
            x_pK = Rounded(x_PK.values[start:end], x_PK.scales[start:end])
            y_PN[start:end] = product(x_pK, Rounded(*weights), dtype, forward=forward)
    return y_PN


def bounds_of(ends_E: Tensor) -> list[int]:
    """Return where groups begin and end, for a loop over them."""
    return [0, *counts_on_host(ends_E, Wait.EXPERT_ROWS)]


@cache
def at_once(device: torch.device) -> bool:
    """Whether torch multiplies all groups at once: its kernel for scales a row is Hopper's (PyTorch's issue 187095)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
