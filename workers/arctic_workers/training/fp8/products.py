"""The product that sums over the rows of groups: gradients of experts' matrices. `arctic_model.rounded` has the others.

What torch asks for beside that: scales [E * M] and [E * N]; groups whose sizes are multiples of 16, none of them empty.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from arctic_model.rounded import Rounded, at_once, bounds_of, product
from arctic_workers.training.fp8.rounding import Layout


def product_over_groups(left_MW: Rounded, right_NW: Rounded, layout: Layout, dtype: torch.dtype) -> Tensor:
    """Return for each group the sums over its places of one matrix's rows times another's: [E, M, N] in a dtype.

    Both are what `by_columns_of_groups` makes by this layout.
    """
    if at_once(left_MW.values.device):
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
    bounds = pairwise(bounds_of(layout.padded_E))
    for (start, end), y_MN, *scales in zip(bounds, y_EMN, left_MW.scales, right_NW.scales, strict=True):
        left_MK, right_NK = (
            Rounded(side.values[:, start:end], of_rows)
            for side, of_rows in zip((left_MW, right_NW), scales, strict=True)
        )
        y_MN.copy_(product(left_MK, right_NK, dtype, forward=False))
    return y_EMN
