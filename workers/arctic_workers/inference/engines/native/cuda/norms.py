"""Norms of rows, on a GPU."""

import triton
from torch import Tensor

from arctic_model.launch import launch
from arctic_workers.inference.engines.native.cuda.kernels import norms as kernels

WARPS = 8


def rms_norm(x_SD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Return [S, D] in fp32, each row by itself: as `arctic_model.layers.RMSNorm` of fp32 rows."""
    x_SD = x_SD.contiguous()
    rows, size = x_SD.shape
    y_SD = x_SD.new_empty(rows, size)
    block = triton.next_power_of_2(size)
    launch(kernels.rms_norm, (rows,), x_SD, weight_D, y_SD, size, eps, BLOCK_D=block, num_warps=WARPS)
    return y_SD
