"""Matrix products of rows with weights that stay as they are in memory: e4m3 with scales, bf16 or fp32.

Arithmetic. Rows are fp32. Tensor cores take fp16, which holds every e4m3 value: a value v of a row is split into
`high = fp16(v / 16)` and `low = fp16((v / 16 - high) * 2^11)`. Their products with a weight are exact, and sums are
fp32: `(sum of highs + sum of lows / 2^11) * 16` is the product of v but for 2^-23 of v, or 2^-32 where that is more.
From 2^20 on a value is infinite. bf16 weights are TF32 values, and rows are split into two of these; fp32 weights are
multiplied as they are, without tensor cores.

Order. A row's result has the same bits whatever shares its step. Columns are cut into sections, as many as follow from
the shape of the weights. Within one they are added in steps of `Shape.step`, in order, by the same instruction for
tiles of every size (`mma.sync`: programs of two warps have no other on any card); then sections are added, in order.
Whether each section is a program, of which the last to end adds up all, or one program goes through all of them, makes
no difference to the last bit.

Speed. A step of decoding waits for memory, so what counts is how much of it is on its way: by Little's law some 5 MB on
a card of 4.5 TB/s. A program has two warps and keeps `Shape.stages` steps on their way by `cp.async` of 16 bytes; four
programs fit on a multiprocessor, and while one waits others convert. At 64 outputs a program, weights of 7,168 outputs
would have 112 programs, fewer than an H200 has multiprocessors, and a tensor rank's slice of an expert 10: therefore
the sections, `PROGRAMS` programs or a little less for most shapes. Programs of 32 outputs were the other way. But to
split rows, which each program does for itself, is already most of what it executes: with 32 outputs instructions, not
memory, would be the limit. For that tiles are as small as 8 rows, too: rows that aren't there are split all the same.
None of this has been measured: instructions and registers were counted in what the compiler makes for sm_89, 90, 100.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cache

import torch
import triton
from torch import Tensor

from arctic_model.fp8 import DTYPE as FP8
from arctic_model.fp8 import Block
from arctic_model.launch import launch
from arctic_workers.inference.engines.native.cuda.kernels import products as kernels

SIZES = (8, 16, 32)
"""How many slots tiles have at most: from what tensor cores take at least to what two warps have registers for."""
SMALL, LARGE = SIZES[0], SIZES[-1]
REGISTERS = 255
"""Of a thread, at most: all there are. The assembler would rather spill some to have more programs run than these."""
PROGRAMS = 396
"""How many programs are wanted that read weights: three on each multiprocessor of an H200."""
MOST_SECTIONS = 16
LEAST_STEPS = 4
"""Of a section: fewer would end before the first few are there."""
OUTPUTS = 64
BYTES = 64
"""Of an output's weights in a step: two sectors of the second cache."""
H200 = (9, 0)


@dataclass(frozen=True, eq=False)
class Matrices:
    """Weights [E, N, K], one matrix or those of experts: `y = x (values * scale)^T`."""

    values: Tensor
    """e4m3, bf16 or fp32, contiguous."""
    scale: Tensor | None = None
    """Of e4m3, fp32: a number an output, [E, N], or a block, [E, ceil(N / rows), ceil(K / columns)]."""
    block: Block | None = None
    """Rows and columns of a block."""
    arrivals: Tensor = field(init=False)
    """How many sections of each part of a product are done; zeros between two products, of which one runs at a time."""

    def __post_init__(self) -> None:
        """Count from the start: zeros that a recording of a CUDA graph makes are none until it is replayed."""
        counts = torch.zeros(PROGRAMS, dtype=torch.int32, device=self.values.device)
        object.__setattr__(self, "arrivals", counts)


@dataclass(frozen=True, eq=False)
class Tiles:
    """Which rows meet which matrix. Rows that share one are in consecutive slots, cut into tiles."""

    table_M3: Tensor
    """int32: which matrix, the first slot, how many slots; none where there is nothing to do."""
    rows_R: Tensor | None
    """int32: which row of x each slot reads; None where each reads its own."""
    size: int
    """Most slots of a tile: one of `SIZES`."""

    def of_slots(self) -> Tiles:
        """Return these tiles for an x that has a row a slot, as a product by them returns it."""
        return dataclasses.replace(self, rows_R=None)


@dataclass(frozen=True)
class Shape:
    """What a program computes at a time."""

    outputs: int
    step: int
    """Columns that are added at a time."""
    stages: int
    """Steps that are on their way or at work."""
    warps: int = 2


@cache
def shape_of(capability: tuple[int, int], dtype: torch.dtype, size: int, gated: bool) -> Shape:
    """Return the shape for a card, weights of a dtype and tiles of a size; where it is gated there are two weights.

    A step has as many columns for tiles of any size: the order of additions asks for it. In registers there is room for
    the sums of two weights of `LARGE` tiles with half as many outputs.
    """
    step = BYTES // dtype.itemsize
    outputs = OUTPUTS // 2 if gated and size == LARGE else OUTPUTS
    bytes_of_step = step * (outputs * dtype.itemsize * (2 if gated else 1) + size * 4)
    # Of shared memory: a quarter of a multiprocessor's 227 KiB, or of 99 KiB. Steps at work have left it.
    room = (56 if capability[0] in (9, 10) else 24) * 1024
    return Shape(outputs, step, stages=max(3, min(7, room // bytes_of_step + 1)))


def tile_size(rows: int) -> int:
    """Return how many slots tiles should have where a matrix meets so many rows."""
    return next((size for size in SIZES if rows <= size), LARGE)


def dense_tiles(rows: int, device: torch.device | str) -> Tiles:
    """Return the tiles of all rows, in order, with one matrix. They serve every step of so many rows."""
    size = tile_size(rows)
    table = [(0, first, min(size, rows - first)) for first in range(0, rows, size)]
    return Tiles(torch.tensor(table, dtype=torch.int32, device=device).view(-1, 3), None, size)


def product(x_SK: Tensor, weights: Matrices, tiles: Tiles) -> Tensor:
    """Return y [R, N] in fp32: each slot's row of x (fp32) times its matrix. Slots of no tile are not written."""
    return _product(x_SK, weights, None, tiles)


def gated(x_SK: Tensor, w1: Matrices, w3: Matrices, tiles: Tiles) -> Tensor:
    """Return `silu(x w1^T) * (x w3^T)` [R, F] in fp32, as `product`; w1 and w3 differ in their numbers alone."""
    return _product(x_SK, w1, w3, tiles)


def _product(x_SK: Tensor, w: Matrices, v: Matrices | None, tiles: Tiles) -> Tensor:
    x_SK = x_SK.contiguous()
    count, outputs, columns = w.values.shape
    rows = len(x_SK) if tiles.rows_R is None else len(tiles.rows_R)
    y_RN = x_SK.new_empty(rows, outputs)
    shape = shape_of(capability_of(x_SK.device), w.values.dtype, tiles.size, gated=v is not None)
    height, width = w.block or (1, 1)
    # Within a block: the largest power of two that divides its columns.
    step = shape.step if w.block is None else min(shape.step, width & -width)
    sections, length = sections_of(count, outputs, columns, step)
    grid = (len(tiles.table_M3), triton.cdiv(outputs, shape.outputs))
    spread = sections > 1 and grid[0] * grid[1] <= PROGRAMS
    parts = x_SK.new_empty(1 if v is None else 2, sections, rows, outputs) if spread else None
    launch(
        kernels.product,
        (*grid, sections if spread else 1),
        x_SK,
        w.values,
        None if v is None else v.values,
        w.scale,
        None if v is None else v.scale,
        y_RN,
        tiles.table_M3,
        tiles.rows_R,
        parts,
        w.arrivals if spread else None,
        outputs,
        columns,
        length,
        rows,
        E4M3=w.values.dtype == FP8,
        GATED=v is not None,
        BLOCKS=w.block is not None,
        HEIGHT=height,
        WIDTH=width,
        STEP=step,
        EVEN=step == shape.step and columns % step == 0,
        SECTIONS=sections,
        SPREAD=spread,
        BLOCK_N=shape.outputs,
        BLOCK_K=shape.step,
        TILE=tiles.size,
        STAGES=shape.stages,
        num_warps=shape.warps,
        maxnreg=REGISTERS,
    )
    return y_RN


@cache  # each launch asks for it, and Triton's own functions take microseconds on the host
def sections_of(count: int, outputs: int, columns: int, step: int) -> tuple[int, int]:
    """Return into how many sections the columns of so many matrices are cut, and how long all but the last are."""
    # A token's experts are at work together: two, where there is a choice.
    programs = triton.cdiv(outputs, OUTPUTS) * min(count, 2)
    steps = triton.cdiv(columns, step)
    wanted = max(1, min(PROGRAMS // programs, MOST_SECTIONS, steps // LEAST_STEPS))
    length = triton.cdiv(steps, wanted) * step
    return triton.cdiv(columns, length), length


@cache
def capability_of(device: torch.device) -> tuple[int, int]:
    """Return what a card can do, as CUDA numbers it: an H200's where there is none."""
    return torch.cuda.get_device_capability(device) if torch.cuda.is_available() else H200
