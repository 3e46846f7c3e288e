"""Norms, a program a row."""

import triton
import triton.language as tl


@triton.jit
def rms_norm(x_SD, weight_D, y_SD, D, eps, BLOCK_D: tl.constexpr):
    """Divide a row by the root of its mean square."""
    row = tl.program_id(0).to(tl.int64) * D
    d = tl.arange(0, BLOCK_D)
    x = tl.load(x_SD + row + d, mask=d < D, other=0.0)
    scale = tl.rsqrt(tl.sum(x * x) / D + eps)
    weight = tl.load(weight_D + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(y_SD + row + d, weight * (x * scale), mask=d < D)
