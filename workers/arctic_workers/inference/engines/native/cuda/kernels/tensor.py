"""What tensor ranks do with each other's shares, once these have come: adding up, and leaving out."""

import triton
import triton.language as tl


@triton.jit
def add_parts(parts_PX, y_X, X, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """Add up the parts of each number, in their order."""
    x = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(parts_PX + x, mask=x < X, other=0.0)
    for part in tl.static_range(1, PARTS):
        total += tl.load(parts_PX + tl.full((), part, tl.int64) * X + x, mask=x < X, other=0.0)
    tl.store(y_X + x, total, mask=x < X)


@triton.jit
def own_tiles(table_M3, own_M3, first, count):
    """Count matrices from `first` on; a tile of one that is not among the `count` has no slots."""
    tile = tl.program_id(0) * 3
    matrix = tl.load(table_M3 + tile) - first
    own = (matrix >= 0) & (matrix < count)
    tl.store(own_M3 + tile, tl.where(own, matrix, 0))
    tl.store(own_M3 + tile + 1, tl.load(table_M3 + tile + 1))
    tl.store(own_M3 + tile + 2, tl.where(own, tl.load(table_M3 + tile + 2), 0))


@triton.jit
def clear_others(table_M3, y_RD, first, count, D, BLOCK: tl.constexpr):
    """Write zeros to the slots of tiles of all other matrices."""
    tile = tl.program_id(0) * 3
    matrix = tl.load(table_M3 + tile) - first
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if (matrix < 0) | (matrix >= count):
        row = tl.load(table_M3 + tile + 1).to(tl.int64)
        for _ in range(tl.load(table_M3 + tile + 2)):
            tl.store(y_RD + row * D + d, tl.zeros((BLOCK,), tl.float32), mask=d < D)
            row += 1
