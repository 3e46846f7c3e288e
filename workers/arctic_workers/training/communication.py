"""The time that this rank's main thread waits in collectives. On GPUs they only begin there: nothing is told then."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from arctic_workers.training.accounts import COMMUNICATION, TimeParts

COLLECTIVES = (
    *("all_reduce", "reduce", "broadcast", "barrier"),
    *("all_gather", "all_gather_into_tensor", "reduce_scatter", "reduce_scatter_tensor"),
    *("all_to_all_single", "all_to_all", "broadcast_object_list"),
)
"""What DeepSpeed and we call of torch.distributed, each by its name there."""


class _Waited:
    """A collective that goes on by itself: what is counted is the time that somebody waits for it."""

    def __init__(self, work: Any, parts: TimeParts) -> None:
        self._work, self._parts = work, parts

    def wait(self, *arguments: Any) -> Any:
        with self._parts.of(COMMUNICATION):
            return self._work.wait(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


@contextmanager
def waits_counted(parts: TimeParts) -> Iterator[None]:
    """Count the time in collectives as communication. torch has no hook for it, so its functions are wrapped."""
    originals = {name: getattr(dist, name) for name in COLLECTIVES}
    for name, function in originals.items():
        setattr(dist, name, _counted(function, parts))
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(dist, name, function)


def _counted(function: Callable[..., Any], parts: TimeParts) -> Callable[..., Any]:
    def counted(*arguments: Any, **options: Any) -> Any:
        with parts.of(COMMUNICATION):
            work = function(*arguments, **options)
        return work if work is None else _Waited(work, parts)

    return counted
