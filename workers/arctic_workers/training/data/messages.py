"""Conversations as they are published, in one form: a list of messages, each with a role and its content."""

import re
from collections.abc import Mapping
from typing import Any

Message = dict[str, Any]

_ROLES = {"human": "user", "gpt": "assistant"}
"""Names of roles in the form of ShareGPT, whose messages have `from` and `value`."""
_HALVES = re.compile(r"[\ud800-\udfff]")


class RowFault(Exception):  # noqa: N818 - as Refused
    """A row that can't be used; the words are the rest of a sentence about it."""


def messages_of(content: Any) -> list[Message]:
    """Return the messages that a row's field holds; `RowFault` says why they can't be used.

    Takes lists of objects with `role` and `content`, or with `from` and `value` (ShareGPT), and an object of lists, as
    `datasets` keeps such columns.
    """
    if isinstance(content, Mapping) and content and all(isinstance(column, list) for column in content.values()):
        content = [dict(zip(content, row, strict=False)) for row in zip(*content.values(), strict=False)]
    if not isinstance(content, list) or not content:
        raise RowFault("has no messages: write a list of objects with role and content")
    messages = [_message(i, message) for i, message in enumerate(content, 1)]
    if not any(message["role"] == "assistant" for message in messages):
        raise RowFault("has no message of an assistant: there is no answer to learn")
    return messages


def _message(number: int, message: Any) -> Message:
    if not isinstance(message, Mapping):
        raise RowFault(f"has a message {number} that is no object")
    role, text = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if isinstance(role, str):
        role = _ROLES.get(role, role)
    if text is None and role == "assistant" and message.get("tool_calls"):  # they may be all that it says
        text = ""
    if not isinstance(role, str) or not isinstance(text, str):
        there = ", ".join(map(str, message)) or "none"
        raise RowFault(f"has a message {number} without role and content as text (its fields: {there})")
    others = {name: value for name, value in message.items() if value is not None and name not in ("from", "value")}
    return {**others, "role": role, "content": whole_characters(text)}


def whole_characters(text: str) -> str:
    """Return a text of the same length that UTF-8 can hold: JSON can have half of a surrogate pair."""
    return _HALVES.sub("\N{REPLACEMENT CHARACTER}", text)
