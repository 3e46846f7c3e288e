"""Weights as the compiled code reads them: in panels of 8 outputs (products.h)."""

import torch
from torch import Tensor
from torch.nn import functional

from arctic_model.fp8 import DTYPE as FP8
from arctic_model.fp8 import Block
from arctic_workers.inference.engines.native.kernel.arena import Arena
from arctic_workers.inference.engines.native.kernel.library import Matrix

LANES = 8
FORMATS = {FP8: 0, torch.bfloat16: 1, torch.float32: 2}


def to_panels(weight: Tensor) -> Tensor:
    """Return a weight [N, K], padded with zeros, in the order of products.h, as integers of the same size."""
    outputs, inputs = weight.shape
    # Integers: not all operations know e4m3.
    raw = weight.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[weight.element_size()])
    missing = (0, -inputs % LANES, 0, -outputs % LANES)
    padded = functional.pad(raw, missing) if any(missing) else raw  # it would copy
    rows, columns = padded.shape
    panels = padded.view(rows // LANES, 2, LANES // 2, columns // LANES, LANES)
    return panels.permute((0, 3, 1, 4, 2) if weight.dtype == FP8 else (0, 3, 1, 2, 4))


def padded_scale(scale: Tensor) -> Tensor:
    """Return a matrix's scales, one a padded output; the tensor itself where nothing has to be padded."""
    # A copy an expert, small as it is, would break up the heap: it stays where what was larger has gone.
    if len(scale) % LANES == 0:
        return scale.float().contiguous()
    return functional.pad(scale.float(), (0, -len(scale) % LANES), value=1.0).contiguous()


def panel_scales(scale: Tensor, block: Block, outputs: int) -> Tensor:
    """Return the scales of blocks, [ceil(N / rows), ceil(K / columns)], of each panel: it lies in one row of them."""
    return scale.float()[torch.arange(0, outputs, LANES) // block[0]]


class Panels:
    """Makes matrices of weights and keeps what they point to."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []
        self._arena = Arena()

    def pointer(self, tensor: Tensor) -> int:
        """Return where a tensor is, and keep it there."""
        self._kept.append(tensor)
        return tensor.data_ptr()

    def matrix(self, weight: Tensor, scale: Tensor | None = None, block: Block | None = None) -> Matrix:
        """Return a copy of a weight [N, K] for the compiled code; its scales are those of outputs or blocks."""
        outputs, inputs = weight.shape
        if scale is None:
            factors = None
        elif block is None:
            factors = self.pointer(padded_scale(scale))
        else:
            factors = self._copy(panel_scales(scale, block, outputs))
        width = 0 if block is None else block[1]
        return Matrix(self._copy(to_panels(weight)), factors, FORMATS[weight.dtype], outputs, inputs, width)

    def _copy(self, tensor: Tensor) -> int:
        packed = self._arena.take(tensor.numel() * tensor.element_size())
        packed.view(tensor.dtype).view(tensor.shape).copy_(tensor)
        return self.pointer(packed)
