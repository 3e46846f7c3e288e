"""Rows rounded to FP8, a program a row."""

import triton
import triton.language as tl

from arctic_workers.inference.engines.native.cuda.kernels.storing import to_e4m3


@triton.jit
def _part(x, up, at, d, D, GATED: tl.constexpr):
    """Return some elements of a row, or of what a gated MLP's w2 takes; zeros beyond the last."""
    mask = at + d < D
    part = tl.load(x + at + d, mask=mask, other=0.0).to(tl.float32)
    if GATED:
        part = part / (1 + tl.exp(-part)) * tl.load(up + at + d, mask=mask, other=0.0).to(tl.float32)
    return part, mask


@triton.jit
def round_rows(x_SD, up_SD, values_SD, scales_S, D, GATED: tl.constexpr, BLOCK_D: tl.constexpr):
    """Round a row of x, or of `silu(x) * up`, so that its greatest magnitude becomes 448; values are e4m3 as uint8."""
    row = tl.program_id(0).to(tl.int64)
    x_SD += row * D
    up_SD += row * D
    d = tl.arange(0, BLOCK_D)
    most = tl.zeros((BLOCK_D,), tl.int32)
    for at in range(0, D, BLOCK_D):
        part, _ = _part(x_SD, up_SD, at, d, D, GATED)
        # As integers magnitudes have the same order, and a NaN is the greatest.
        most = tl.maximum(most, tl.abs(part).to(tl.int32, bitcast=True))
    scale = tl.div_rn(tl.max(most).to(tl.float32, bitcast=True), 448.0)
    scale = tl.where(scale > 0, scale, 1.0)
    tl.store(scales_S + row, scale)
    for at in range(0, D, BLOCK_D):
        part, mask = _part(x_SD, up_SD, at, d, D, GATED)
        tl.store(values_SD + row * D + at + d, to_e4m3(tl.div_rn(part, scale)), mask=mask)
