"""Runs the code of an answer, and calls its function for whoever judges it: arguments come in, values go out.

It knows neither the expected values nor who asks. Whatever the code does to this process, to score it has to answer
each call with the right value.
"""

import signal
import time
from collections.abc import Mapping
from types import FrameType
from typing import IO, Any

from arctic_workers.evaluation.sandbox.programs.modules import new_module
from arctic_workers.evaluation.sandbox.programs.values import NotPlainError, decode, encode, receive, send, type_name

SLICE = 0.05


class _TooLong(BaseException):
    pass


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise _TooLong


def run(payload: Mapping[str, Any], _result: IO[bytes]) -> None:
    """Answer calls until there are none. `payload` has `code`, `entry_point`, and the channels."""
    calls, answers = payload["calls"], payload["answers"]
    signal.signal(signal.SIGPROF, _interrupt)
    loaded = _within(payload["load_seconds"], lambda: _load(payload["code"], payload["entry_point"]))
    function = loaded.pop("function", None)
    send(answers, loaded)
    if function is None:
        return
    while True:
        try:
            call = receive(calls)
        except EOFError:
            return
        send(answers, _within(call["seconds"], lambda: _answer(function, call["arguments"])))  # noqa: B023


def _load(code: str, entry_point: str) -> dict[str, Any]:
    names = new_module("__answer__")
    exec(compile(code, "<answer>", "exec", dont_inherit=True), names)  # noqa: S102  this is what it is for
    if entry_point not in names:
        return {"kind": "no function", "error": f"it defines no {entry_point}"}
    return {"function": names[entry_point]}


def _answer(function: Any, arguments: Any) -> dict[str, Any]:
    given = [decode(argument) for argument in arguments]
    value = function(*given)
    try:
        return {"value": encode(value), "type": type_name(value)}
    except (NotPlainError, RecursionError) as error:
        return {"kind": "no plain value", "error": str(error), "none": value is None}


def _within(seconds: float, action: Any) -> dict[str, Any]:
    """Return what an action returns, or how it failed, and how many seconds of this process's time it took."""
    start = time.process_time()
    try:
        # Of the process's own time, so that a busy machine changes no score; what sleeps ends with the wall's time.
        # Repeated: code may catch the first.
        signal.setitimer(signal.ITIMER_PROF, seconds, SLICE)
        try:
            found: dict[str, Any] = action()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except _TooLong:
        found = {"kind": "timed out", "error": f"took more than {seconds:.2f} s"}
    except SyntaxError as error:
        found = {"kind": "syntax error", "error": f"{type(error).__name__}: {error}"}
    except MemoryError:
        found = {"kind": "memory", "error": "ran out of memory"}
    except BaseException as error:
        found = {"kind": "raised", "error": f"{type(error).__name__}: {error}"[:2000]}
    return {**found, "seconds": time.process_time() - start}
