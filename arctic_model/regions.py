"""Regions: functions of tensors that a GPU does in few passes over its memory, by torch's compiler.

What stands between matmuls and exchanges is bound by memory: each operation of its own reads and writes all of its
tensors, a compiled region does so once. Whole layers are not compiled, so that the order in which autograd runs them,
and what is kept for the backward pass, stay as written. A region takes tensors, numbers and nothing else; it sees no
module, so all layers share what was compiled for the first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_compiled_on: set[str] = set()
_options: dict[str, Any] = {}


def compile_on(device: str, **options: Any) -> None:
    """Compile all regions from now on whose first tensor is on this type of device; elsewhere they are called as is.

    `options` are those of `torch.compile`. Compiling needs a C compiler where it runs, and seconds at the first call of
    each region.
    """
    _compiled_on.add(device)
    _options.update(options)


def region(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make a region of a function whose first argument is a tensor."""
    compiled: list[Callable[Arguments, Result]] = []

    @wraps(function)
    def call(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        if not _compiled_on or not _is_on(_compiled_on, arguments[0]):
            return function(*arguments, **named)
        if not compiled:  # not before: it imports the compiler, for seconds
            compiled.append(torch.compile(function, **_options))
        return compiled[0](*arguments, **named)

    return call


def _is_on(devices: set[str], tensor: object) -> bool:
    return isinstance(tensor, Tensor) and tensor.device.type in devices
