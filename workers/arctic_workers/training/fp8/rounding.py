"""Rounding to FP8: matrices as e4m3 values with a scale a row, in the layouts that products take.

A product sums along rows of both its operands, so that a matrix is wanted by its rows in one product, and by its
columns, turned round, in another. Shapes are named by the legend of `arctic_model.layers`; P are rows that are sorted
by group (by expert, or all of one group), W the places of these rows where each group is padded, N and K any features.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Generic, TypeVar

import torch
from torch import Tensor

from arctic_model.fp8 import DTYPE
from arctic_model.launch import launch
from arctic_model.rounded import Rounded

BLOCK = 32
"""Rows to whose multiples a group is padded: whole sectors of memory, and of the 16 that products ask for."""
_WIDTH = 128
"""Columns of a tile."""
_LEAST = 2.0**-100
"""A magnitude below which scales don't follow: their inverses would be infinite."""
_INFINITE = 0x7F800000


Made = TypeVar("Made")


class Last(Generic[Made]):
    """What was made of the last tensor that was given: several products in a row take the same one."""

    def __init__(self, make: Callable[[Tensor], Made]) -> None:
        self._make = make
        self._given: Callable[[], Tensor | None] = lambda: None
        self._version = 0
        self._made: Made | None = None

    def of(self, x: Tensor) -> Made:
        """Return what is made of a tensor."""
        if self._made is None or self._given() is not x or self._version != x._version:
            self._made = self._make(x)
            self._version = x._version
            self._given = weakref.ref(x, self._forget)  # what is made takes no memory for longer than the tensor
        return self._made

    def _forget(self, given: object) -> None:
        if given is self._given:
            self._made = None


@dataclass(frozen=True)
class Layout:
    """How rows are cut into groups, and where these are in the columns' layout."""

    ends_E: Tensor
    """Where each group's rows end: int32, on the device."""
    padded_E: Tensor
    """Where it ends when each is padded to whole blocks, at least one: a product with nothing to sum is refused."""
    blocks: int
    """Blocks of all groups, at most."""

    @classmethod
    def of(cls, ends_E: Tensor, padded_E: Tensor, rows: int) -> Layout:
        """Return those of so many rows in all; the ends of padded ones are `padded_ends`."""
        return cls(ends_E, padded_E, rows // BLOCK + len(ends_E))

    @classmethod
    def equal(cls, groups: int, rows: int, device: torch.device) -> Layout:
        """Return groups of so many rows each."""
        blocks = max(-(-rows // BLOCK), 1)
        order_E = torch.arange(1, groups + 1, dtype=torch.int32, device=device)
        return cls(order_E * rows, order_E * (blocks * BLOCK), groups * blocks)

    @property
    def width(self) -> int:
        """Places of all rows in the columns' layout, at most."""
        return self.blocks * BLOCK


def padded_ends(ends_E: Tensor) -> Tensor:
    """Return where groups end when they are padded, of where they end."""
    counts_E = ends_E.diff(prepend=ends_E.new_zeros(1))
    blocks_E = ((counts_E + (BLOCK - 1)) // BLOCK).clamp(min=1)
    return (blocks_E * BLOCK).cumsum(0, dtype=torch.int32)


def by_rows(x: Tensor) -> Rounded:
    """Round matrices [..., N, K] by their rows."""
    x_PK = x.reshape(-1, x.shape[-1])
    rows, _ = _round(x_PK, Layout.equal(1, x_PK.shape[0], x.device), rows=True, columns=False)
    return Rounded(rows.values.view(x.shape), rows.scales.view(x.shape[:-1]))


def by_columns(x: Tensor) -> Rounded:
    """Round matrices [..., N, K] by their columns: those of the matrices turned round, [..., K, N]."""
    *stack, rows, width = x.shape
    experts = prod(stack)
    columns = by_columns_of_groups(x.reshape(-1, width), Layout.equal(experts, rows, x.device))
    values_EKN = columns.values.view(width, experts, -1)[..., :rows].transpose(0, 1)
    return Rounded(values_EKN.view(*stack, width, rows), columns.scales.view(*stack, width))


def by_both(x_PN: Tensor) -> tuple[Rounded, Rounded]:
    """Return `by_rows` and `by_columns` of one matrix, which are made together.

    The values of a column are followed by zeros to a multiple of `BLOCK`: no product of two such is another by it.
    """
    rows, columns = by_both_of_groups(x_PN, Layout.equal(1, x_PN.shape[0], x_PN.device))
    return rows, Rounded(columns.values, columns.scales[0])


def by_columns_of_groups(x_PN: Tensor, layout: Layout) -> Rounded:
    """Round each group's columns: values [N, W], the groups side by side, each followed by zeros; scales [E, N]."""
    return _round(x_PN, layout, rows=False, columns=True)[1]


def by_both_of_groups(x_PN: Tensor, layout: Layout) -> tuple[Rounded, Rounded]:
    """Return `by_rows` and `by_columns_of_groups`, which are made together."""
    return _round(x_PN, layout, rows=True, columns=True)


def _round(x_PN: Tensor, layout: Layout, *, rows: bool, columns: bool) -> tuple[Rounded, Rounded]:
    """Round by rows, by groups' columns or by both; what is not asked for is empty."""
    if x_PN.is_cuda:
        return round_by_kernels(x_PN.contiguous(), layout, rows=rows, columns=columns)
    empty = Rounded(x_PN.new_empty(0, dtype=DTYPE), x_PN.new_empty(0))
    return _by_rows(x_PN) if rows else empty, _by_columns(x_PN, layout) if columns else empty


def _by_rows(x_PN: Tensor) -> Rounded:
    scales_P, inverses_P = _scales(x_PN.abs().amax(-1))
    return Rounded((x_PN.float() * inverses_P[:, None]).to(DTYPE), scales_P)


def _by_columns(x_PN: Tensor, layout: Layout) -> Rounded:
    values_NW = torch.zeros(x_PN.shape[1], layout.width, dtype=DTYPE)
    scales_EN = torch.empty(len(layout.ends_E), x_PN.shape[1])
    start = start_padded = 0
    for scales_N, end, end_padded in zip(scales_EN, layout.ends_E.tolist(), layout.padded_E.tolist(), strict=True):
        x_Np = x_PN[start:end].t().float()
        # Beside its rows a group has zeros: of none of its own, that is all.
        scales_N[:], inverses_N = _scales(torch.cat([x_Np, x_Np.new_zeros(len(x_Np), 1)], 1).abs().amax(-1))
        values_NW[:, start_padded : start_padded + end - start] = (x_Np * inverses_N[:, None]).to(DTYPE)
        start, start_padded = end, end_padded
    return Rounded(values_NW, scales_EN)


def _scales(magnitudes_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least powers of two that bring magnitudes to at most 448, and their inverses.

    By their bits, so that they are the same on every device: 448 is 1.75 * 2^8, and a mantissa of more than 1.75 takes
    one exponent more.
    """
    bits_N = magnitudes_N.float().clamp(min=_LEAST).view(torch.int32)
    exponents_N = (bits_N.clamp(max=_INFINITE) + 0x1FFFFF) >> 23
    finite_N = bits_N < _INFINITE
    scales_N, inverses_N = (
        torch.where(finite_N, (exponents << 23).view(torch.float32), torch.nan)
        for exponents in (exponents_N - 8, 262 - exponents_N)
    )
    return scales_N, inverses_N


def round_by_kernels(x_PN: Tensor, layout: Layout, *, rows: bool, columns: bool) -> tuple[Rounded, Rounded]:
    """Do so by Triton's kernels with what is contiguous: on a GPU, or on a CPU under Triton's interpreter.

    No host waits for it.
    """
    from arctic_workers.training.fp8 import kernels

    places, width, experts = *x_PN.shape, len(layout.ends_E)
    bits = torch.zeros(places + experts * width, dtype=torch.int32, device=x_PN.device)
    row_bits, column_bits = bits[:places], bits[places:]
    row_values = x_PN.new_empty(x_PN.shape if rows else 0, dtype=DTYPE)
    row_scales = x_PN.new_empty(places if rows else 0, dtype=torch.float32)
    column_values = x_PN.new_empty((width, layout.width) if columns else 0, dtype=DTYPE)
    column_scales = x_PN.new_empty((experts, width) if columns else 0, dtype=torch.float32)
    constants = {
        "GROUPS": 1 << (experts - 1).bit_length(),
        "ROWS": rows,
        "COLUMNS": columns,
        "BLOCK_P": BLOCK,
        "BLOCK_N": _WIDTH,
    }
    grid = (layout.blocks, -(-width // _WIDTH))
    given = (x_PN, layout.ends_E, layout.padded_E, row_bits, column_bits)
    launch(kernels.find_magnitudes, grid, *given, experts, width, **constants)
    made = (row_values, row_scales, column_values, column_scales)
    launch(kernels.round_tiles, grid, *given, *made, experts, width, layout.width, **constants)
    return Rounded(row_values, row_scales), Rounded(column_values, column_scales)
