"""The candidate as the checker sees it: a function in another process, whose answers are plain data or failures."""

import json
from collections.abc import Mapping
from typing import IO, Any

from arctic_workers.evaluation.sandbox.programs.values import NotPlainError, decode, encode, receive, send

_TOLD = ("no function", "no plain value", "timed out", "syntax error", "memory", "raised")
"""Kinds of failure that the candidate's own process may tell of."""
ENDED = "ended"
"""The kind of failure of a process that is gone: who started it knows why."""


class NoValueError(Exception):
    """The candidate gave no value; `kind` says how it failed."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Candidate:
    """Calls a function of the candidate's process."""

    def __init__(self, calls: int, answers: int) -> None:
        self._calls = calls
        self._answers = answers
        self.seconds = 0.0
        """Of its processor time, in the last call."""
        self.type_name = ""
        """Of the last value."""
        self.was_none = False

    def loaded(self) -> None:
        """Wait until the code has been run; NoValueError if it was not."""
        self._answer()

    def call(self, arguments: Any, seconds: float) -> Any:
        """Return the value for some arguments; NoValueError if there is none within some seconds of processor time."""
        try:
            send(self._calls, {"arguments": [encode(argument) for argument in arguments], "seconds": seconds})
        except BrokenPipeError:
            raise NoValueError(ENDED, "the process ended") from None
        said = self._answer()
        try:
            value = decode(said["value"])
            self.type_name = str(said["type"])
        except (KeyError, NotPlainError, RecursionError) as error:
            raise NoValueError("no plain value", f"answered with no value: {error}") from None
        return value

    def _answer(self) -> Mapping[str, Any]:
        try:
            said = receive(self._answers)
        except EOFError:
            raise NoValueError(ENDED, "the process ended") from None
        except NotPlainError as error:
            raise NoValueError("no plain value", str(error)) from None
        if not isinstance(said, dict) or not isinstance(said.get("seconds"), float):
            raise NoValueError("no plain value", "answered with what is no answer")
        self.seconds = said["seconds"]
        if "error" in said:
            kind = said.get("kind")
            failed = NoValueError(kind if kind in _TOLD else "no plain value", str(said["error"])[:2000])
            self.was_none = said.get("none") is True
            raise failed
        return said


def conclude(result: IO[bytes], **said: Any) -> None:
    """Say the verdict."""
    result.write(json.dumps(said).encode())
