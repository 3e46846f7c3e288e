"""Products of many rows whose rows are rounded to FP8 too, so that tensor cores multiply them as they are.

No product that keeps a row's bits is as fast. Each value that is multiplied is off by a sixteenth at most, and what
comes of a row may depend on how many share its step: for other numbers of rows torch takes other kernels. Products are
bf16, as torch has no others for a scale a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from arctic_model import rounded
from arctic_model.fp8 import DTYPE
from arctic_model.launch import launch
from arctic_model.moe import count_choices
from arctic_model.rounded import MULTIPLE, Rounded
from arctic_model.rounded import product as product_of_rounded
from arctic_model.rounded import product_of_groups as groups_of_rounded
from arctic_workers.inference.engines.native.cuda.kernels import rounding as kernels
from arctic_workers.inference.engines.native.cuda.products import Matrices
from arctic_workers.inference.engines.native.cuda.routing import Routes
from arctic_workers.inference.engines.native.cuda.weights import MLP, bytes_of

LEAST_ROWS = 128
"""Rows from which on products are bound by arithmetic, not by the weights that are read."""
COLUMNS = 2048
"""Of a row that a program has at a time."""


def takes(*several: Matrices) -> bool:
    """Whether matrices can be multiplied so: e4m3 with a scale an output, and sides that the kernels take."""
    return all(
        weights.values.dtype == DTYPE
        and weights.block is None
        and not any(size % MULTIPLE for size in weights.values.shape[1:])
        for weights in several
    )


def takes_experts(mlps: MLP) -> bool:
    """The same of experts: where torch multiplies all at once, as a loop over them waits for how many rows each has."""
    device = mlps.w1.values.device
    return takes(*mlps) and (device.type == "cpu" or rounded.at_once(device))


def product(x_SK: Tensor, weights: Matrices) -> Tensor:
    """Return x W^T [S, N] in fp32, of the only matrix."""
    return _product(round_rows(x_SK), weights).float()


def mlp_of(x_SD: Tensor, mlp: MLP) -> Tensor:
    """Return a gated MLP of rows [S, D] in fp32, its matrices being one each."""
    x = round_rows(x_SD)
    return _product(round_gated(_product(x, mlp.w1), _product(x, mlp.w3)), mlp.w2).float()


def experts_of(x_SD: Tensor, mlps: MLP, routes: Routes) -> Tensor:
    """Return what experts return of their slots, [R, D] in fp32; there are matrices of all of them."""
    ends_E = count_choices(routes.experts_SK.flatten().long(), len(mlps.w1.values)).cumsum(0, dtype=torch.int32)
    x = round_rows(x_SD)
    assert routes.tiles.rows_R is not None
    rows_R = routes.tiles.rows_R
    x = Rounded(bytes_of(x.values).index_select(0, rows_R).view(DTYPE), x.scales.index_select(0, rows_R))
    inner = round_gated(_of_groups(x, mlps.w1, ends_E), _of_groups(x, mlps.w3, ends_E))
    return _of_groups(inner, mlps.w2, ends_E).float()


def round_rows(x_SD: Tensor) -> Rounded:
    """Round rows as `arctic_model.fp8.quantize` does."""
    return _round(x_SD, None)


def round_gated(gate_SF: Tensor, up_SF: Tensor) -> Rounded:
    """Round what w2 of a gated MLP takes, of what w1 and w3 gave."""
    return _round(gate_SF, up_SF)


def _round(x_SD: Tensor, up_SD: Tensor | None) -> Rounded:
    x_SD = x_SD.contiguous()
    rows, size = x_SD.shape
    values_SD = x_SD.new_empty(rows, size, dtype=torch.uint8)
    scales_S = x_SD.new_empty(rows, dtype=torch.float32)
    up = x_SD if up_SD is None else up_SD.contiguous()
    launch(kernels.round_rows, (rows,), x_SD, up, values_SD, scales_S, size, GATED=up_SD is not None, BLOCK_D=COLUMNS)
    return Rounded(values_SD.view(DTYPE), scales_S)


def _product(x_SK: Rounded, weights: Matrices) -> Tensor:
    assert weights.scale is not None
    return product_of_rounded(x_SK, Rounded(weights.values[0], weights.scale[0]), torch.bfloat16, forward=True)


def _of_groups(x_RK: Rounded, weights: Matrices, ends_E: Tensor) -> Tensor:
    assert weights.scale is not None
    stack = Rounded(weights.values, weights.scale)
    return groups_of_rounded(x_RK, stack, ends_E, torch.bfloat16, forward=True)
