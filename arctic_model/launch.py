"""Where Triton's kernels start: one function for all, so that what they are given can be looked at without a GPU."""

from typing import Any

import torch
from torch import Tensor


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Start so many programs of a Triton kernel on the device of its first tensor, in that device's current stream.

    `constants` are its `tl.constexpr` and Triton's own options, `num_warps` among them. Nothing starts where a grid is
    empty.
    """
    if not all(grid):
        return
    first = next(argument for argument in arguments if isinstance(argument, Tensor))
    if not first.is_cuda:  # Triton's interpreter
        kernel[grid](*arguments, **constants)
        return
    with torch.cuda.device(first.device):
        kernel[grid](*arguments, **constants)
