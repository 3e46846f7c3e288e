"""What a pod is told by the one who made it."""

from collections.abc import Mapping
from typing import TypeVar

from pydantic import ValidationError

from arctic_api.world import WORLD_VARIABLE, PodWorld

_Told = TypeVar("_Told", bound=PodWorld)


class BadWorld(Exception):  # noqa: N818 - a refusal
    """The environment does not hold a world that this pod could be part of; the text says why."""


def read_told(environment: Mapping[str, str], kind: type[_Told], maker: str) -> _Told:
    """Return the world that the environment holds; `BadWorld` says what is wrong, and that `maker` makes such pods."""
    if WORLD_VARIABLE not in environment:
        raise BadWorld(f"{WORLD_VARIABLE} is not set: {maker}")
    try:
        return kind.model_validate_json(environment[WORLD_VARIABLE])
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise BadWorld(f"{WORLD_VARIABLE} holds no {kind.__name__}: {faults}") from error
