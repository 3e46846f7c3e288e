"""Weights as the compiled code reads them: panels of 8 outputs, in which one row reads memory as one stream."""

import torch
from torch import Tensor
from torch.nn import functional

from arctic_model.fp8 import DTYPE as FP8
from arctic_workers.inference.engines.native.kernel.library import Matrix

LANES = 8
FORMATS = {FP8: 0, torch.bfloat16: 1, torch.float32: 2}


def to_panels(weight: Tensor) -> Tensor:
    """Return [N, K] as bytes of [N / 8, K / 8, 8, 8], padded with zeros; in place where nothing has to be padded."""
    outputs, inputs = weight.shape
    # Integers of the same size: not all operations know e4m3.
    raw = weight.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[weight.element_size()])
    padded = functional.pad(raw, (0, -inputs % LANES, 0, -outputs % LANES))
    rows, columns = padded.shape
    panels = padded.view(rows // LANES, LANES, columns // LANES, LANES).transpose(1, 2)
    if padded.shape == raw.shape:
        return raw.copy_(panels.reshape(rows, columns)).view(torch.uint8)
    return panels.contiguous().view(torch.uint8)


def padded_scale(scale: Tensor) -> Tensor:
    """Return a matrix's scales, one a padded output."""
    return functional.pad(scale.float(), (0, -len(scale) % LANES), value=1.0).contiguous()


class Panels:
    """Makes matrices of weights and keeps what they point to."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def pointer(self, tensor: Tensor) -> int:
        """Return where a tensor is, and keep it there."""
        self._kept.append(tensor)
        return tensor.data_ptr()

    def matrix(self, weight: Tensor, scale: Tensor | None = None) -> Matrix:
        """Return a weight [N, K] for the compiled code; the tensor itself holds nothing readable afterwards."""
        outputs, inputs = weight.shape
        factors = None if scale is None else self.pointer(padded_scale(scale))
        return Matrix(self.pointer(to_panels(weight)), factors, FORMATS[weight.dtype], outputs, inputs, 0)
