"""How experts are multiplied in FP8: a `GroupedProduct` in place of the plain one."""

from __future__ import annotations

from collections.abc import MutableMapping

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from arctic_model.rounded import Rounded, product_of_groups
from arctic_workers.training.fp8.products import product_over_groups
from arctic_workers.training.fp8.rounding import (
    Last,
    Layout,
    by_both_of_groups,
    by_columns,
    by_columns_of_groups,
    by_rows,
    padded_ends,
)


class RoundedProduct:
    """All three products of experts' matrices in FP8."""

    def __init__(self) -> None:
        self._last = Last(by_rows)
        self._padded = Last(padded_ends)
        # Of gradients, which are rounded by both at once, until they are asked for.
        self._columns: MutableMapping[Tensor, Rounded] = WeakIdKeyDictionary()

    def takes(self, weights_EFD: Tensor) -> bool:  # noqa: ARG002 - all sizes that `check_fp8_sizes` lets through
        """See `GroupedProduct`: on every device, so that CPUs round as GPUs do."""
        return True

    def rows(self, x_PM: Tensor, weights_EMN: Tensor, ends_E: Tensor) -> Tensor:
        """See `GroupedProduct`."""
        if not x_PM.shape[0]:
            return x_PM.new_empty(0, weights_EMN.shape[2])
        if weights_EMN.mT.is_contiguous():  # as forward, where w1 and w3 multiply the same rows
            weights_ENM = by_rows(weights_EMN.mT)
            return product_of_groups(self._last.of(x_PM), weights_ENM, ends_E, x_PM.dtype, forward=True)
        rows_PM, self._columns[x_PM] = by_both_of_groups(x_PM, self._layout(ends_E, x_PM.shape[0]))
        return product_of_groups(rows_PM, by_columns(weights_EMN), ends_E, x_PM.dtype, forward=False)

    def weight_gradient(self, left_PM: Tensor, right_PN: Tensor, ends_E: Tensor) -> Tensor:
        """See `GroupedProduct`."""
        if not left_PM.shape[0]:
            return left_PM.new_zeros(len(ends_E), left_PM.shape[1], right_PN.shape[1])
        layout = self._layout(ends_E, left_PM.shape[0])
        left_MW = self._columns.pop(left_PM, None)
        if left_MW is None:
            left_MW = by_columns_of_groups(left_PM, layout)
        return product_over_groups(left_MW, by_columns_of_groups(right_PN, layout), layout, left_PM.dtype)

    def _layout(self, ends_E: Tensor, rows: int) -> Layout:
        return Layout.of(ends_E, self._padded.of(ends_E), rows)
