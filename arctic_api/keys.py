"""API keys: how the values of a Secret are read, and what is kept of a key to know it again.

A digest is all that anybody needs, so a key itself goes no further than whoever reads the Secret. Keys are long and
random, which is why a plain SHA-256 can't be turned back.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import NamedTuple

_SENDABLE = re.compile(rb"[!-~]{1,4096}")


class Keys(NamedTuple):
    """What a Secret holds."""

    digests: frozenset[str]
    """Of the keys that it holds, in hex."""
    problems: tuple[str, ...]
    """Lines that no client can send, by value and number, never by what they say."""


def digest_of(key: bytes) -> str:
    """Return what is kept of a key: its SHA-256 in hex."""
    return hashlib.sha256(key).hexdigest()


def first_key(values: Mapping[str, bytes]) -> str | None:
    """Return the first key of a Secret's values by their names, as `read_keys` reads them; None if there is none."""
    lines = (line.strip() for _, value in sorted(values.items()) for line in value.splitlines())
    return next((line.decode() for line in lines if _SENDABLE.fullmatch(line)), None)


def read_keys(values: Mapping[str, bytes]) -> Keys:
    """Return the keys of a Secret's values by their names: one or several keys a value, one a line.

    White space around a key, such as the newline at a file's end, is no part of it.
    """
    lines = [
        (name, number, line.strip())
        for name, value in sorted(values.items())
        for number, line in enumerate(value.splitlines(), 1)
        if line.strip()
    ]
    wrong = tuple(
        f"{name}, line {number}: write visible ASCII characters without spaces"
        for name, number, line in lines
        if not _SENDABLE.fullmatch(line)
    )
    return Keys(frozenset(digest_of(line) for _, _, line in lines if _SENDABLE.fullmatch(line)), wrong)
