"""What tensor ranks, a process and a GPU each, give each other in a step.

Each rank has summands of what o and w2 give. An all-reduce of NCCL's may add in an order that follows from the tensor's
size, so that a row's bits would depend on what shares its step. Here summands are exchanged, and every number is added
up in the order of the ranks: at once on all ranks where they are few, else by one rank for all, which is less to carry
and takes two exchanges. To the last bit both are the same, and so is what the ranks have then.

Nothing here waits for the device, and all of it can be recorded in a CUDA graph: torch lets what watches NCCL ask the
driver during a recording (pytorch/pytorch 148594), and a collective that somebody waits for runs on the current stream.
"""

import torch
import torch.distributed as dist
import triton
from torch import Tensor

from arctic_model.launch import launch
from arctic_workers.inference.engines.native.cuda.kernels import tensor as kernels
from arctic_workers.inference.engines.native.cuda.products import Tiles

AT_ONCE = 1 << 20
"""Bytes of a rank's summands up to which every rank gets those of all: then the time to begin an exchange is more than
that of what it carries, at some hundred GB/s and 10 us. No measurement."""
BLOCK = 1024

# What torch 2.13 calls a gather into one tensor, and 2.11 does not know by that name.
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Sums:
    """Adds up what all ranks of the process group have of a tensor: of as many numbers as are a multiple of them."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks

    def __call__(self, x_TD: Tensor) -> Tensor:
        """Return the sums, fp32 [T, D], the same bits on all ranks; all call it, in the same order."""
        x_X = x_TD.contiguous().view(-1)
        if x_X.nbytes <= AT_ONCE:
            return self._add(self._gathered(x_X)).view_as(x_TD)
        own_X = torch.empty_like(x_X)
        dist.all_to_all_single(own_X, x_X)
        return self._gathered(self._add(own_X)).view_as(x_TD)

    def _gathered(self, x_X: Tensor) -> Tensor:
        all_X = x_X.new_empty(self._ranks * len(x_X))
        _gather(all_X, x_X)
        return all_X

    def _add(self, parts_X: Tensor) -> Tensor:
        """Return the sums of what the ranks' parts, one after the other, have."""
        size = len(parts_X) // self._ranks
        y_X = parts_X.new_empty(size)
        grid = (triton.cdiv(size, BLOCK),)
        launch(kernels.add_parts, grid, parts_X, y_X, size, PARTS=self._ranks, BLOCK=BLOCK)
        return y_X


def own_tiles(tiles: Tiles, experts: range) -> Tiles:
    """Return the tiles of some experts, which are counted from the first of these on; others have nothing to do."""
    own_M3 = torch.empty_like(tiles.table_M3)
    launch(kernels.own_tiles, (len(own_M3),), tiles.table_M3, own_M3, experts.start, len(experts))
    return Tiles(own_M3, tiles.rows_R, tiles.size)


def clear_others(y_RD: Tensor, tiles: Tiles, experts: range) -> None:
    """Write zeros, in place, to the slots of all other experts: nobody has."""
    grid = (len(tiles.table_M3), triton.cdiv(y_RD.shape[1], BLOCK))
    size = y_RD.shape[1]
    launch(kernels.clear_others, grid, tiles.table_M3, y_RD, experts.start, len(experts), size, BLOCK=BLOCK)
