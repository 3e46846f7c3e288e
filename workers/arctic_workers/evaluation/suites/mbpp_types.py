"""The types of MBPP+'s inputs, which its published file has as JSON (`evalplus/data/mbpp.py`, 0.3.1)."""

from collections.abc import Callable
from typing import Any

_EACH = {2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809}
_EACH_OF_EACH = {63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780}
_EACH_OF_FIRST = {75, 413, 444, 753}
_SECOND = {106, 750}
_FIRST = {250, 307, 405, 446, 617, 720, 763, 808}
_ALL_OF_EACH = {259, 278, 401, 445}
_ALL_THE_WAY = {580, 615, 791}


def _tuples(items: Any) -> list[Any]:
    return [tuple(item) for item in items]


def _deep(value: Any) -> Any:
    return tuple(map(_deep, value)) if isinstance(value, list) else value


def _lists_in_it(items: Any) -> tuple[Any, ...]:
    return tuple(tuple(item) if isinstance(item, list) else item for item in items)


_OF_ONE: dict[int, Callable[[list[Any]], Any]] = {
    115: lambda it: [[set(item) if isinstance(item, list) and item else {} for item in it[0]]],
    124: lambda it: [float(it[0]), complex(it[1])],
    252: lambda it: [complex(it[0])],
    722: lambda it: [{key: tuple(value) for key, value in it[0].items()}, *it[1:]],
}
_OF_MANY: tuple[tuple[set[int], Callable[[list[Any]], Any]], ...] = (
    (_EACH, _tuples),
    (_EACH_OF_EACH, lambda it: [_tuples(items) for items in it]),
    (_EACH_OF_FIRST, lambda it: [_tuples(it[0]), it[1]]),
    (_SECOND, lambda it: [it[0], tuple(it[1])]),
    (_FIRST, lambda it: [tuple(it[0]), *it[1:]]),
    (_ALL_OF_EACH, lambda it: [_lists_in_it(items) for items in it]),
    (_ALL_THE_WAY, lambda it: list(map(_deep, it))),
)


def typed(task: str, arguments: list[Any]) -> list[Any]:
    """Return the arguments of one call, as the task `Mbpp/N` means them."""
    number = int(task.rpartition("/")[2])
    if number in _OF_ONE:
        return list(_OF_ONE[number](arguments))
    for tasks, change in _OF_MANY:
        if number in tasks:
            return list(change(arguments))
    return arguments
