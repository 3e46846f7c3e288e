"""Weights as the compiled code reads them: in panels of 8 outputs (products.h)."""

import ctypes
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from arctic_model.fp8 import DTYPE as FP8
from arctic_model.fp8 import Block
from arctic_workers.inference.engines.native.kernel.arena import Arena
from arctic_workers.inference.engines.native.kernel.library import Matrix
from arctic_workers.inference.engines.native.kernel.nodes import Cpus

LANES = 8
MARKS_OF_A_WORD = 64
FORMATS = {FP8: 0, torch.bfloat16: 1, torch.float32: 2}
FP8_BY_BF16 = 3
"""The format of weights in e4m3 whose rows are rounded."""


def to_panels(weight: Tensor, kind: int) -> Tensor:
    """Return a weight [N, K], padded with zeros, in the order of products.h, as integers of the same size."""
    outputs, inputs = weight.shape
    # Integers: not all operations know e4m3.
    raw = weight.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[weight.element_size()])
    missing = (0, -inputs % LANES, 0, -outputs % LANES)
    padded = functional.pad(raw, missing) if any(missing) else raw  # it would copy
    rows, columns = padded.shape
    if kind == FP8_BY_BF16:
        return padded.view(rows // LANES, 4, 2, columns // LANES, 2, 4).permute(0, 3, 1, 4, 2, 5)
    panels = padded.view(rows // LANES, 2, LANES // 2, columns // LANES, LANES)
    return panels.permute((0, 3, 1, 4, 2) if kind == FORMATS[FP8] else (0, 3, 1, 2, 4))


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

    def __init__(self, code: ctypes.CDLL, cpus: Sequence[Cpus], *, rounds: bool = False) -> None:
        """`cpus` are those that each tensor rank's part of the weights is to be near.

        Weights in FP8 are laid out for rows in bf16 if it `rounds`.
        """
        self._code = code
        self._formats = FORMATS | ({FP8: FP8_BY_BF16} if rounds else {})
        self._kept: list[Tensor] = []
        self._arenas = [Arena(near) for near in cpus]

    def pointer(self, tensor: Tensor) -> int:
        """Return where a tensor is, and keep it there."""
        self._kept.append(tensor)
        return tensor.data_ptr()

    def matrices(
        self, weight: Tensor, scale: Tensor | None = None, block: Block | None = None, *, owner: int | None = None
    ) -> list[Matrix]:
        """Return a copy of a weight [N, K] for the compiled code: for each tensor rank, its range of panels.

        Scales are those of outputs or blocks. All panels are the `owner`'s, if there is one.
        """
        parts = len(self._arenas)
        count = -(-len(weight) // LANES)
        if owner is None:
            firsts = [count * part // parts for part in range(parts + 1)]
        else:
            firsts = [0] * (owner + 1) + [count] * (parts - owner)
        by_panel = None if scale is None or block is None else panel_scales(scale, block, len(weight))
        made = []
        for arena, (first, end) in zip(self._arenas, pairwise(firsts), strict=True):
            rows = weight[first * LANES : end * LANES]
            if by_panel is not None:
                factors = self._copy(arena, by_panel[first:end])
            elif scale is not None:
                factors = self.pointer(padded_scale(scale[first * LANES : end * LANES]))
            else:
                factors = None
            width = 0 if block is None else block[1]
            kind = self._formats[weight.dtype]
            panels = to_panels(rows, kind)
            copy = self._copy(arena, panels)
            marks = self._marks(arena, copy, *panels.shape[:2]) if kind == FORMATS[FP8] else None
            made.append(Matrix(copy, factors, kind, *rows.shape, first, width, marks))
        return made

    def _marks(self, arena: Arena, panels: int, count: int, blocks: int) -> int:
        """Say of each block of so many panels in e4m3, which are there, whether it has subnormals."""
        marks = arena.take(count * -(-blocks // MARKS_OF_A_WORD) * 8).zero_()
        self._code.arctic_mark_subnormals(panels, count, blocks, marks.data_ptr())
        return self.pointer(marks)

    def _copy(self, arena: Arena, tensor: Tensor) -> int:
        packed = arena.take(tensor.numel() * tensor.element_size())
        packed.view(tensor.dtype).view(tensor.shape).copy_(tensor)
        return self.pointer(packed)
