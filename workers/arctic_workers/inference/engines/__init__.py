"""One room an engine, each behind the protocol of `arctic_workers.inference.engine`; none knows another.

A room's module `room` has one function, `run(group, rank)`: be one pod of a group until it ends in order. It raises
Refused for what the engine can't do. Rooms are imported when their engine is asked for: each has libraries of its own.
"""

from collections.abc import Callable
from importlib import import_module

from arctic_api.engine_options import EngineName
from arctic_api.world import InferenceGroup

Run = Callable[[InferenceGroup, int], None]


def room(name: EngineName) -> Run:
    """Return what runs a pod with that engine. ImportError if the image lacks its libraries."""
    run: Run = import_module(f"{__name__}.{name.replace('-', '_')}.room").run
    return run
