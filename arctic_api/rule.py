"""The form of a rule: the same sentence once in CEL for the API server and once in Python for a laptop and a worker."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from arctic_api.common import Resource


class Judge(Enum):
    """Who says on a cluster what no CEL rule of ours says."""

    API_SERVER = "the API server refuses it by itself"
    OPERATOR = (
        "CEL can't say it within its cost budget: the object is accepted, and the operator refuses it in a condition"
    )


@dataclass(frozen=True)
class Rule:
    """One rule about every object of the type `where`."""

    where: type[Resource]
    """The type at whose node of the schema the rule stands."""
    cel: str | Judge
    """The rule for the API server, true where the object is right; or who else judges it there."""
    predicate: Callable[..., bool]
    """The same on the object; a transition rule gets the old object too."""
    message: str
    """What to write."""
    field_path: str = ""
    """The field at fault, from the node, as in `.warmupTokens`."""
    transition: bool = False
    """Whether it compares with the object before an update (`oldSelf` in CEL)."""
    detail: Callable[[Any], str] | None = None
    """The message with names and numbers in it, which CEL's cost budget forbids."""
