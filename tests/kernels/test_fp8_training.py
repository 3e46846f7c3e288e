"""The kernels that round to FP8 in training against what CPUs do, which is the reference: the same numbers."""

import pytest
import torch
from torch import Tensor

from arctic_model.fp8 import DTYPE
from arctic_model.rounded import Rounded
from arctic_workers.training.fp8.rounding import (
    BLOCK,
    Layout,
    by_both_of_groups,
    by_columns_of_groups,
    by_rows,
    padded_ends,
    round_by_kernels,
)


def layout_of(counts: list[int]) -> Layout:
    ends_E = torch.tensor(counts).cumsum(0, dtype=torch.int32)
    return Layout.of(ends_E, padded_ends(ends_E), sum(counts))


def assert_same(found: Rounded, expected: Rounded, places: int | None = None) -> None:
    """Zeros have no sign here: products don't see it. Columns may have places that no group has."""
    torch.testing.assert_close(found.scales, expected.scales, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found.values.float()[..., :places], expected.values.float()[..., :places])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("counts", "columns"),
    [([1], 16), ([BLOCK], 128), ([3 * BLOCK + 5], 272), ([37, 0, 5, 64], 48), ([0, 0, 1], 144), ([7] * 9, 16)],
    ids=str,
)
def test_rows_and_columns_are_those_of_the_reference(counts: list[int], columns: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x_PN = (torch.randn(sum(counts), columns) * torch.exp(6 * torch.randn(sum(counts), 1))).to(dtype)
    layout = layout_of(counts)
    rows, by_group = round_by_kernels(x_PN, layout, rows=True, columns=True)
    for found, expected, places in zip(
        (rows, by_group), by_both_of_groups(x_PN, layout), (None, int(layout.padded_E[-1])), strict=True
    ):
        assert_same(found, expected, places)
    alone, nothing = round_by_kernels(x_PN, layout, rows=True, columns=False)
    assert_same(alone, by_rows(x_PN))
    assert not nothing.values.numel()
    nothing, alone = round_by_kernels(x_PN, layout, rows=False, columns=True)
    assert_same(alone, by_columns_of_groups(x_PN, layout), int(layout.padded_E[-1]))
    assert not nothing.values.numel()


def test_groups_of_equal_sizes_are_those_of_a_stack() -> None:
    x_PN = torch.randn(3 * 48, 16)
    layout = Layout.equal(3, 48, x_PN.device)
    assert_same(round_by_kernels(x_PN, layout, rows=False, columns=True)[1], by_columns_of_groups(x_PN, layout))


def all_codes() -> Tensor:
    """All 254 e4m3 numbers, and what lies half-way between each and the next."""
    codes = torch.arange(256, dtype=torch.uint8).view(DTYPE).float()
    numbers = torch.unique(codes[codes.isfinite()])
    return torch.cat([numbers, (numbers[1:] + numbers[:-1]) / 2])


def test_all_numbers_stay_and_halves_go_to_even() -> None:
    numbers = all_codes()
    x_PN = numbers.repeat(2, 1)[:, : len(numbers) // 16 * 16].contiguous()
    rows, columns = round_by_kernels(x_PN, layout_of([2]), rows=True, columns=True)
    assert rows.scales.tolist() == [1, 1]
    assert torch.equal(rows.values[0].float(), x_PN[0].to(DTYPE).float())
    assert torch.equal(columns.widened()[:, 0], by_columns_of_groups(x_PN, layout_of([2])).widened()[:, 0])


def test_what_is_no_finite_number_makes_its_row_and_its_groups_column_none() -> None:
    x_PN = torch.ones(4, 16)
    x_PN[0, 3], x_PN[2, 5] = torch.nan, -torch.inf
    layout = layout_of([2, 2])
    rows, columns = round_by_kernels(x_PN, layout, rows=True, columns=True)
    assert rows.scales.isnan().tolist() == [True, False, True, False]
    assert columns.scales.isnan().nonzero().tolist() == [[0, 3], [1, 5]]
