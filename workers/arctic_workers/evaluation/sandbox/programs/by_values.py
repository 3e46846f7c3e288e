"""Judges a candidate by inputs and expected values, by the rules of EvalPlus 0.3.1 (`evalplus/eval/__init__.py`).

Two differences, both where that script is mistaken: HumanEval/32 (`find_zero`) can pass, as there an input that is
right is not counted; and Mbpp/164 (`are_equivalent`) has to be right, as there anything is.
"""

import math
from collections.abc import Mapping, Sequence
from typing import IO, Any

from arctic_workers.evaluation.sandbox.programs.asking import Candidate, NoValueError, conclude
from arctic_workers.evaluation.sandbox.programs.values import decode, encode, type_name

NOT_NONE = ("check_str", "text_match_three", "text_starta_endb")
AS_SETS = (
    *("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum"),
    *("intersection_array", "find_dissimilar", "Diff"),
)
RELATIVE = 1e-7
FLOATS = 1e-6


def run(payload: Mapping[str, Any], result: IO[bytes]) -> None:
    """Compare the candidate's values for `inputs` with `expected`, or return them where nothing is expected."""
    candidate = Candidate(payload["calls"], payload["answers"])
    values: list[Any] = []
    seconds: list[float] = []
    place = -1
    try:
        candidate.loaded()
        for place, told in enumerate(payload["inputs"]):
            arguments = decode(told)
            value = _value(candidate, arguments, payload["seconds"][place], payload)
            seconds.append(candidate.seconds)
            if payload["expected"] is None:
                values.append(encode(value))
                continue
            expected = decode(payload["expected"][place])
            if not agrees(value, candidate.type_name, expected, arguments, payload):
                message = (
                    f"{payload['entry_point']}{_short(tuple(arguments))} is {_short(value)}, not {_short(expected)}"
                )
                conclude(result, passed=False, kind="wrong answer", message=message, input=place, seconds=sum(seconds))
                return
    except NoValueError as failed:
        seconds.append(candidate.seconds)
        conclude(result, passed=False, kind=failed.kind, message=str(failed), input=place, seconds=sum(seconds))
    else:
        conclude(result, passed=True, kind="passed", message="", values=values, spent=seconds, seconds=sum(seconds))


def _value(candidate: Candidate, arguments: Sequence[Any], seconds: float, payload: Mapping[str, Any]) -> Any:
    try:
        value = candidate.call(arguments, seconds)
    except NoValueError as failed:
        # A match of a regular expression is no plain data, and all that these ask is whether there is one.
        if payload["entry_point"] in NOT_NONE and failed.kind == "no plain value":
            return True
        raise
    if payload["expected"] is None and payload["entry_point"] in NOT_NONE:
        return value is not None and value is not False if isinstance(value, bool) else value is not None
    return value


def agrees(value: Any, kind: str, expected: Any, arguments: Sequence[Any], problem: Mapping[str, Any]) -> bool:
    """Return whether a value is the expected one; `kind` is the name of its type before it travelled."""
    try:
        return _agrees(value, kind, expected, arguments, problem)
    except Exception:  # values of kinds that can't be compared
        return False


def _agrees(value: Any, kind: str, expected: Any, arguments: Sequence[Any], problem: Mapping[str, Any]) -> bool:
    name, tolerance = problem["entry_point"], problem["atol"]
    if problem["dataset"] == "humaneval" and name == "find_zero":
        return bool(abs(_polynomial(arguments[0], value)) <= tolerance)
    exact = bool(value == expected)
    if problem["dataset"] == "mbpp":
        exact = _by_oracle(name, value, expected, arguments, tolerance, exact)
    if tolerance == 0 and _are_floats(expected):
        tolerance = FLOATS
    if exact or tolerance == 0:
        return exact
    if kind != type_name(expected):
        return False
    if isinstance(expected, list | tuple) and len(value) != len(expected):
        return False
    return close(value, expected, tolerance)


def _by_oracle(name: str, value: Any, expected: Any, arguments: Sequence[Any], tolerance: float, exact: bool) -> bool:
    if name in AS_SETS:
        return set(value) == set(expected)
    if name in NOT_NONE:
        return bool(value == expected) if isinstance(value, bool) else bool(expected == (value is not None))
    if name == "sum_div":
        return exact or bool(value == 0)
    if name == "surface_Area":
        return exact or bool(abs(value - _surface_area(*arguments)) <= tolerance)
    if name == "digit_distance_nums":
        return exact or bool(value == _digit_distance(*arguments))
    return exact


def close(value: Any, expected: Any, tolerance: float) -> bool:
    """Return whether all numbers of two nested lists are close, as numpy's `allclose` has it for like shapes."""
    if isinstance(expected, list | tuple):
        like = isinstance(value, list | tuple) and len(value) == len(expected)
        return like and all(close(one, other, tolerance) for one, other in zip(value, expected, strict=True))
    if isinstance(expected, complex) or isinstance(value, complex):
        return bool(abs(value - expected) <= tolerance + RELATIVE * abs(expected))
    if not (isinstance(value, int | float) and isinstance(expected, int | float)):
        return False  # a text may read like a number, and is none
    one, other = float(value), float(expected)
    if math.isinf(one) or math.isinf(other):
        return one == other
    return abs(one - other) <= tolerance + RELATIVE * abs(other)


def _are_floats(expected: Any) -> bool:
    if isinstance(expected, list | tuple):
        return bool(expected) and all(isinstance(item, float) for item in expected)
    return isinstance(expected, float)


def _polynomial(coefficients: Sequence[float], x: float) -> float:
    return sum(coefficient * math.pow(x, power) for power, coefficient in enumerate(coefficients))


def _surface_area(base: float, height: float) -> int:
    """Return the surface of a square pyramid by its height, which Mbpp/581 leaves open beside the slant height."""
    return round(base**2 + 2 * base * math.sqrt((base / 2) ** 2 + height**2))


def _digit_distance(one: int, other: int) -> int:
    """Return the sum of the digits' differences, place by place: one of two readings of Mbpp/558."""
    width = max(len(str(one)), len(str(other)))
    pairs = zip(str(one).zfill(width), str(other).zfill(width), strict=True)
    return sum(abs(int(left) - int(right)) for left, right in pairs)


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # of more digits than Python writes, or too deep
        return f"a {type(value).__name__} that can't be shown"
    return text if len(text) <= 300 else f"{text[:300]}..."
