"""Products of matrices that are rounded to FP8: on GPUs by their units for it, on CPUs of the same numbers in fp32.

Sums are fp32. NVIDIA's Hopper can add faster, with fewer bits: forward it does, and not for gradients, as Transformer
Engine has it (`_2X_ACC_FPROP`, `_2X_ACC_DGRAD` and `_2X_ACC_WGRAD` of its modules).

What torch asks for (2.11 to 2.13: `aten/src/ATen/native/cuda/ScaledBlas.cpp`, `GroupedBlas.cpp`, `GroupMMCommon.cuh`):
rows of both operands side by side in memory, so that the second one, turned round, is column-major; fp32 scales
[M, 1] and [1, N], of groups [P] and [E, N], or where these are what is summed over [E * M] and [E * N]; sizes, but for
M and P, that are multiples of 16; of groups that are summed over, such sizes too, and none that is empty.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from arctic_model.devices import Wait, counts_on_host
from arctic_workers.training.fp8.rounding import Layout, Rounded


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
    if _at_once(x_PK.values.device):
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
    for (start, end), *weights in zip(pairwise(_bounds(ends_E)), *weights_ENK, strict=True):
        if end > start:
            x_pK = Rounded(x_PK.values[start:end], x_PK.scales[start:end])
            y_PN[start:end] = product(x_pK, Rounded(*weights), dtype, forward=forward)
    return y_PN


def product_over_groups(left_MW: Rounded, right_NW: Rounded, layout: Layout, dtype: torch.dtype) -> Tensor:
    """Return for each group the sums over its places of one matrix's rows times another's: [E, M, N] in a dtype.

    Both are what `by_columns_of_groups` makes by this layout.
    """
    if _at_once(left_MW.values.device):
        return torch._scaled_grouped_mm(
            left_MW.values,
            right_NW.values.t(),
            left_MW.scales.flatten(),
            right_NW.scales.flatten(),
            offs=layout.padded_E,
            out_dtype=dtype,
            use_fast_accum=False,
        )
    y_EMN = left_MW.values.new_empty(
        (len(layout.ends_E), left_MW.values.shape[0], right_NW.values.shape[0]), dtype=dtype
    )
    bounds = pairwise(_bounds(layout.padded_E))
    for (start, end), y_MN, *scales in zip(bounds, y_EMN, left_MW.scales, right_NW.scales, strict=True):
        left_MK, right_NK = (
            Rounded(side.values[:, start:end], of_rows)
            for side, of_rows in zip((left_MW, right_NW), scales, strict=True)
        )
        y_MN.copy_(product(left_MK, right_NK, dtype, forward=False))
    return y_EMN


def _bounds(ends_E: Tensor) -> list[int]:
    return [0, *counts_on_host(ends_E, Wait.EXPERT_ROWS)]


@cache
def _at_once(device: torch.device) -> bool:
    """Whether torch multiplies all groups at once: its kernel for scales a row is Hopper's (PyTorch's issue 187095)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
