"""Values as JSON between processes that do not trust each other: plain data, whatever either side makes of it.

Only exact types are told apart. What is of a class derived from one of them travels as the base, and what is none of
them not at all: an object whose `__eq__` says yes to everything never reaches who compares.
"""

import json
import os
import sys
from typing import Any

MOST_BYTES = 32 << 20
"""Of one message."""
_SAFE = 1 << 53


class NotPlainError(Exception):
    """A value that is no plain data."""


def encode(value: Any) -> Any:
    """Return a value as what JSON can say; NotPlainError if it is no plain data."""
    if value is None or value is True or value is False:
        return value
    for kind, tag in _TAGS:
        if isinstance(value, kind):
            return tag(value)
    for module, name, tag in _RARE:
        # Who has such a value has imported its module; to import it here would cost each process its time.
        if module in sys.modules and isinstance(value, getattr(sys.modules[module], name)):
            return tag(value)
    item = getattr(value, "item", None)
    if type(value).__module__ == "numpy" and callable(item) and getattr(value, "ndim", None) == 0:
        return encode(item())
    raise NotPlainError(f"a value of type {type(value).__name__} can't be compared: it is no plain data")


def _integer(value: int) -> Any:
    value = int.__index__(value)
    return value if -_SAFE < value < _SAFE else {"i": hex(value)}


_TAGS: tuple[tuple[type, Any], ...] = (
    (str, str.__str__),
    (int, _integer),
    (float, lambda value: {"f": float.hex(value)}),
    (list, lambda value: [encode(item) for item in list.__iter__(value)]),
    (tuple, lambda value: {"t": [encode(item) for item in tuple.__iter__(value)]}),
    (dict, lambda value: {"d": [[encode(key), encode(item)] for key, item in dict.items(value)]}),
    (set, lambda value: {"s": [encode(item) for item in set.__iter__(value)]}),
    (frozenset, lambda value: {"z": [encode(item) for item in frozenset.__iter__(value)]}),
    (bytes, lambda value: {"b": bytes.hex(value)}),
    (complex, lambda value: {"c": [float.hex(value.real), float.hex(value.imag)]}),
    (range, lambda value: {"r": [value.start, value.stop, value.step]}),
)
_RARE: tuple[tuple[str, str, Any], ...] = (
    ("fractions", "Fraction", lambda value: {"q": [hex(value.numerator), hex(value.denominator)]}),
    ("decimal", "Decimal", lambda value: {"e": str(value)}),
)


def _fraction(parts: Any) -> Any:
    from fractions import Fraction

    return Fraction(*(int(part, 16) for part in parts))


def _decimal(text: Any) -> Any:
    from decimal import Decimal

    return Decimal(text)


_READ: dict[str, Any] = {
    "i": lambda it: int(it, 16),
    "f": float.fromhex,
    "t": lambda it: tuple(map(decode, it)),
    "d": lambda it: {decode(key): decode(value) for key, value in it},
    "s": lambda it: set(map(decode, it)),
    "z": lambda it: frozenset(map(decode, it)),
    "b": bytes.fromhex,
    "c": lambda it: complex(*map(float.fromhex, it)),
    "r": lambda it: range(*it),
    "q": _fraction,
    "e": _decimal,
}


def decode(told: Any) -> Any:
    """Return the value of what `encode` returns; NotPlainError for anything else."""
    if isinstance(told, list):
        return [decode(item) for item in told]
    if not isinstance(told, dict):
        return told
    try:
        [(tag, content)] = told.items()
        return _READ[tag](content)
    except NotPlainError:
        raise
    except Exception as error:
        raise NotPlainError(f"not plain data: {error!r}") from None


def type_name(value: Any) -> str:
    """Return by what name a value's type is compared: two values of like types have like names."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def send(descriptor: int, message: Any) -> None:
    """Write one message; NotPlainError if it is too large."""
    content = json.dumps(message).encode()
    if len(content) > MOST_BYTES:
        raise NotPlainError(f"a value of {len(content)} bytes: {MOST_BYTES} at most")
    content = len(content).to_bytes(4, "little") + content
    while content:
        content = content[os.write(descriptor, content) :]


def receive(descriptor: int) -> Any:
    """Read one message; EOFError where there is none any more, NotPlainError for what is no message."""
    length = int.from_bytes(_exactly(descriptor, 4), "little")
    if length > MOST_BYTES:
        raise NotPlainError(f"a message of {length} bytes: {MOST_BYTES} at most")
    try:
        return json.loads(_exactly(descriptor, length))
    except (ValueError, RecursionError) as error:
        raise NotPlainError(f"not a message: {error}") from None


def _exactly(descriptor: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.read(descriptor, min(length, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
