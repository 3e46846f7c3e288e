"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): the backward pass computes again what it needs.

Selective: a model marks the parts of its layers that are worth it, none of which communicates. torch's own
`utils.checkpoint` would do the same, and imports torch's compiler for it, which is seconds of a rank's start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


def recomputed(function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    """Return `function(*arguments)`, of which the backward pass keeps nothing but the arguments.

    The function must do the same each time that it is called; its collectives would be done twice.
    """
    if not torch.is_grad_enabled():
        return function(*arguments)
    part = _Part(lambda: function(*arguments))
    with saved_tensors_hooks(part.pack, part.unpack):
        return function(*arguments)


class _Enough(Exception):  # noqa: N818 - no error
    """All that the backward pass asks for is there."""


class _Part:
    """What autograd would keep of one call, by number, made when the first of it is asked for."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call: Callable[[], Any] | None = call
        self._count = 0
        self._made: list[Tensor | None] = []

    def pack(self, _: Tensor) -> int:
        self._count += 1
        return self._count - 1

    def unpack(self, number: int) -> Tensor:
        if self._call is not None:
            call, self._call = self._call, None
            try:
                with torch.enable_grad(), saved_tensors_hooks(self._keep, _never):
                    call()
            except _Enough:
                pass
        tensor, self._made[number] = self._made[number], None
        assert tensor is not None, "a graph has one backward pass"
        return tensor

    def _keep(self, tensor: Tensor) -> None:
        self._made.append(tensor.detach())
        if len(self._made) == self._count:
            raise _Enough


def _never(_: Any) -> Tensor:
    raise AssertionError("what is computed again has no backward pass of its own")
