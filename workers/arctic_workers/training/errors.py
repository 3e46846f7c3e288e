"""The ways in which a training ends by its own word: bad input, a store that a newer attempt owns or that is full."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Refused(Exception):  # noqa: N818 - a refusal is no error
    """The input is bad and trying again can't help.

    Args:
        reason: CamelCase, for a condition.
        message: a sentence for people: what is wrong, where, what to do.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # both, so that it can travel to other ranks
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        """Return the sentence."""
        return self.message


class Fenced(Exception):  # noqa: N818 - nor is being late
    """A newer attempt has claimed the store: this one may not commit any more."""


class StoreFull(Exception):  # noqa: N818 - names what happened
    """The volume of the store has no room for what is to be written there; the text says which, and what to do."""


def checked(call: Callable[[], T]) -> T:
    """Turn the sentence of a ValueError about the manifest into a refusal."""
    try:
        return call()
    except ValueError as error:
        raise Refused("InvalidSpec", str(error)) from error
