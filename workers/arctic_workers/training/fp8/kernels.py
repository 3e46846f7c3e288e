"""Rounding to FP8 on a GPU, in Triton: jitted functions alone. `rounding` says what they are given.

A block is some rows of one group, or what pads it: blocks are counted in the columns' layout, where each group begins
at a multiple of a block. Magnitudes are compared as bits, whose order is that of numbers that are not negative, with
NaN above all.
"""

# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def _rows_of_block(ends, padded, groups, GROUPS: tl.constexpr, BLOCK_P: tl.constexpr):
    """Return this program's group, its first row in the columns' layout, its rows, and which of these there are.

    The group is `groups` for a block that no group has.
    """
    first = tl.program_id(0) * BLOCK_P
    g = tl.arange(0, GROUPS)
    padded_g = tl.load(padded + g, mask=g < groups, other=2147483647)
    group = tl.sum((padded_g <= first).to(tl.int32))
    before = group - 1
    inside = (before >= 0) & (group < groups)
    start = tl.load(ends + before, mask=inside, other=0)
    start_padded = tl.load(padded + before, mask=inside, other=0)
    end = tl.load(ends + group, mask=group < groups, other=0)
    row_P = start + (first - start_padded) + tl.arange(0, BLOCK_P)
    return group, first, row_P, row_P < end


@triton.jit
def _exponents(bits):
    """Return what scales are made of: whether they are numbers, and the exponent that brings 448 above a magnitude.

    448 is 1.75 * 2^8: a mantissa of more than 1.75 needs one exponent more.
    """
    finite = bits < 0x7F800000
    bits = tl.maximum(bits, 0x0D800000)  # 2^-100: below, a scale's inverse would be infinite
    return finite, tl.where(finite, (bits + 0x1FFFFF) >> 23, 127)


@triton.jit
def _scale(bits):
    finite, exponent = _exponents(bits)
    return tl.where(finite, ((exponent - 8) << 23).to(tl.float32, bitcast=True), float("nan"))


@triton.jit
def _inverse_scale(bits):
    finite, exponent = _exponents(bits)
    return tl.where(finite, ((262 - exponent) << 23).to(tl.float32, bitcast=True), float("nan"))


@triton.jit
def _to_e4m3(x):
    """Round what is at most 448 to e4m3, to nearest, halves to even.

    It is rounded before the cast, which then changes nothing: for GPUs before Hopper, Triton casts by way of fp16,
    which would round twice, and its interpreter casts otherwise.
    """
    bits = x.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
    subnormal = (x + 24576.0) - 24576.0  # 1.5 * 2^14, beside which numbers are 2^-9 apart
    return tl.where(tl.abs(x) < 0.015625, subnormal, normal).to(tl.float8e4nv)


@triton.jit
def find_magnitudes(
    x,
    ends,
    padded,
    row_bits,
    column_bits,
    groups,
    columns,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Raise the magnitudes of rows, and of each group's columns, to the greatest of this program's tile."""
    group, _, row_P, there_P = _rows_of_block(ends, padded, groups, GROUPS, BLOCK_P)
    if group == groups:
        return
    n_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    there_PN = there_P[:, None] & (n_N < columns)[None, :]
    x_PN = tl.load(x + row_P.to(tl.int64)[:, None] * columns + n_N[None, :], mask=there_PN, other=0.0)
    bits_PN = tl.abs(x_PN.to(tl.float32)).to(tl.int32, bitcast=True)
    if ROWS:
        tl.atomic_max(row_bits + row_P, tl.max(bits_PN, axis=1), mask=there_P)
    if COLUMNS:
        tl.atomic_max(column_bits + group * columns + n_N, tl.max(bits_PN, axis=0), mask=n_N < columns)


@triton.jit
def round_tiles(
    x,
    ends,
    padded,
    row_bits,
    column_bits,
    row_values,
    row_scales,
    column_values,
    column_scales,
    groups,
    columns,
    width,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Round this program's tile: as it is for rows, turned round for columns, of which each row is `width` long."""
    group, first, row_P, there_P = _rows_of_block(ends, padded, groups, GROUPS, BLOCK_P)
    if group == groups:
        return
    n_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    there_N = n_N < columns
    there_PN = there_P[:, None] & there_N[None, :]
    place_PN = row_P.to(tl.int64)[:, None] * columns + n_N[None, :]
    x_PN = tl.load(x + place_PN, mask=there_PN, other=0.0).to(tl.float32)
    if ROWS:
        bits_P = tl.load(row_bits + row_P, mask=there_P, other=0)
        values_PN = _to_e4m3(x_PN * _inverse_scale(bits_P)[:, None])
        tl.store(row_values + place_PN, values_PN, mask=there_PN)
        if tl.program_id(1) == 0:
            tl.store(row_scales + row_P, _scale(bits_P), mask=there_P)
    if COLUMNS:
        bits_N = tl.load(column_bits + group * columns + n_N, mask=there_N, other=0)
        values_PN = _to_e4m3(x_PN * _inverse_scale(bits_N)[None, :])
        turned_PN = n_N.to(tl.int64)[None, :] * width + (first + tl.arange(0, BLOCK_P))[:, None]
        tl.store(column_values + turned_PN, values_PN, mask=there_N[None, :])
        # A group's first block says its scales: all of its blocks know them.
        at_start = first == tl.load(padded + group - 1, mask=group > 0, other=0)
        tl.store(column_scales + group * columns + n_N, _scale(bits_N), mask=there_N & at_start)
