"""What of an answer is the code: harnesses cut differently, and so score differently.

Chats: the code blocks of the answer (the rule of most harnesses), where `evalplus` takes the longest run of lines that
parses. Completions: all up to the first stop, with the stops that `evalplus` has (`evalplus/provider/utility.py`).
"""

import re
from collections.abc import Sequence

STOPS = ("<|endoftext|>", "<|endofmask|>", "</s>", "\nif __name__", "\ndef main(", "\nprint(")
HUMANEVAL_STOPS = (*STOPS, "\ndef ", "\nclass ", "\nimport ", "\nfrom ", "\nassert ")
MBPP_STOPS = (*STOPS, '\n"""', "\nassert")
_QUOTED = r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`"""
_QUOTED_OR_COMMENT = re.compile(rf"({_QUOTED})|--[^\n]*|/\*.*?\*/", re.DOTALL)
_STATEMENT = re.compile(rf"(?:{_QUOTED}|[^;])*")
_START = re.compile(r"\bselect\b|\bwith\s+(?:recursive\s+)?\S+\s*(?:\([^()]*\)\s*)?\bas\s*\(", re.IGNORECASE)
"""Of a query; the word `with` stands in English before one as well."""
_FENCE = re.compile(
    r"^(?P<indent>[ \t]*)(?P<fence>(?P<mark>[`~])(?P=mark){2,})[ \t]*(?P<language>[\w+#.-]*)[^\n]*\n"
    r"(?P<code>.*?)(?:^[ \t]*(?P=fence)(?P=mark)*[ \t\r]*$|\Z)",
    re.DOTALL | re.MULTILINE,
)
"""A fenced block as CommonMark has it, but for how far it may be indented (https://spec.commonmark.org, 4.5)."""


def cut_at(text: str, stops: Sequence[str]) -> str:
    """Return the text up to the first of some stops, which is not part of it."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


def blocks(text: str, languages: Sequence[str]) -> list[str]:
    """Return the code blocks of a Markdown text: those of some languages, or without one of theirs all.

    The last block may lack its end, as of an answer that was cut off.
    """
    found = [(match["language"].lower(), _without_indent(match)) for match in _FENCE.finditer(text)]
    named = [code for language, code in found if language in languages]
    return named or [code for _, code in found]


def _without_indent(block: re.Match[str]) -> str:
    """Return the code of a block without the indentation of its fence, as of one in a list."""
    return re.sub(rf"^[ \t]{{0,{len(block['indent'])}}}", "", block["code"], flags=re.MULTILINE)


def python_code(text: str, entry_point: str) -> str:
    """Return the program in a chat's answer: the first block that defines it, else all blocks, else the text."""
    found = blocks(text, ("python", "python3", "py"))
    defines = re.compile(
        rf"^\s*(async\s+)?def\s+{re.escape(entry_point)}\b|^{re.escape(entry_point)}\s*=", re.MULTILINE
    )
    for block in found:
        if defines.search(block):
            return block
    return "\n".join(found) if found else text


def sql_query(text: str) -> str:
    """Return the first statement in a chat's answer, on one line and so without comments."""
    found = blocks(text, ("sql", "sqlite"))
    query = _without_comments(found[0]) if found else text
    match = _START.search(query)
    query = _without_comments(query[match.start() :]) if match else query
    statement = _STATEMENT.match(query)
    return " ".join((statement[0] if statement else query).split())


def _without_comments(query: str) -> str:
    return _QUOTED_OR_COMMENT.sub(lambda match: match[1] or " ", query)
