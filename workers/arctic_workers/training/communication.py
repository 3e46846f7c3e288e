"""The time that this rank's main thread waits in collectives. On GPUs they only begin there: nothing is told then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from deepspeed.comm import comm

from arctic_workers.training.accounts import COMMUNICATION, TimeParts
from arctic_workers.training.experts.exposure import Flights

COLLECTIVES = (
    *("all_reduce", "reduce", "broadcast", "barrier"),
    *("all_gather", "all_gather_into_tensor", "reduce_scatter", "reduce_scatter_tensor"),
    *("all_to_all_single", "all_to_all", "broadcast_object_list"),
)
"""What DeepSpeed and we call of torch.distributed, each by its name there."""
HELD = ("all_gather_function", "reduce_scatter_function")
"""Those that DeepSpeed's backend has taken from there when it was made."""


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
def waits_counted(parts: TimeParts, flights: Flights) -> Iterator[None]:
    """Count the time in collectives as communication, and note those that block among the flights.

    torch has no hook for it, so its functions are wrapped.
    """
    places = [(dist, name) for name in COLLECTIVES] + [(comm.cdb, name) for name in HELD]
    originals = [(place, name, getattr(place, name)) for place, name in places]
    for place, name, function in originals:
        setattr(place, name, _counted(function, parts, flights))
    try:
        yield
    finally:
        for place, name, function in originals:
            setattr(place, name, function)


def _counted(function: Callable[..., Any], parts: TimeParts, flights: Flights) -> Callable[..., Any]:
    def counted(*arguments: Any, **options: Any) -> Any:
        began = time.monotonic()
        with parts.of(COMMUNICATION):
            work = function(*arguments, **options)
        if work is not None:
            return _Waited(work, parts)
        flights.blocked(began)
        return None

    return counted
