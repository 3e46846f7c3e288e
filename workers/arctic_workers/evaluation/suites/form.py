"""What every suite has: questions, a judge, figures, and probes by which the judge is judged."""

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Protocol

from arctic_workers.evaluation.scores import Parts, Verdicts
from arctic_workers.evaluation.verdict import Verdict


class DataError(Exception):
    """A suite's data can't be read; the message says what is wrong, where, and what to do."""


@dataclass(frozen=True)
class Question:
    """One thing that a model is asked."""

    name: str
    chat: str
    """What the user says, where the model has a chat template."""
    text: str
    """What is to be continued, where it has none."""
    stops: tuple[str, ...] = ()
    """Where a continuation is cut off."""
    max_tokens: int = 768


@dataclass(frozen=True)
class Answer:
    """What a model said, and whether as a chat or as a continuation of the question's text."""

    text: str
    is_chat: bool


@dataclass(frozen=True)
class Probe:
    """An answer whose verdict is known beforehand."""

    kind: str
    """gold, empty, constant, prompt"""
    question: str
    answer: Answer
    passes: bool


class Suite(Protocol):
    """A suite with its data."""

    name: str

    @property
    def rules(self) -> str:
        """Whose rules it follows, and where it differs, for people."""
        ...

    @property
    def questions(self) -> Sequence[Question]:
        """What a model is asked, in the data's order."""
        ...

    def judge(self, question: str, answer: Answer) -> Verdict:
        """Judge one answer. May be called from several threads."""
        ...

    def figures(self, verdicts: Verdicts) -> Mapping[str, Parts]:
        """Return the figures by name, the main one first."""
        ...

    def probes(self) -> Iterator[Probe]:
        """Return answers whose verdict is known: gold ones, and ones that nothing can be right with."""
        ...


_NOT_PUBLISHED = "it is not in the suite's published format"


def read_rows(path: Path, needed: Mapping[str, type | UnionType], name: str = "") -> list[dict[str, Any]]:
    """Read JSON lines, or one JSON array, packed by gzip or not.

    DataError unless each row has the needed fields, each of its type, and another `name` than the others, if that is a
    field.
    """
    rows = _placed_rows(path)
    for place, row in rows:
        missing = [field for field in needed if not isinstance(row, dict) or field not in row]
        if missing:
            raise DataError(f"{path}: {place} has no {', '.join(missing)}: {_NOT_PUBLISHED}")
        for field, kind in needed.items():
            if not isinstance(row[field], kind):
                raise DataError(f"{path}: {place}: {field} is {json.dumps(row[field])[:100]}: {_NOT_PUBLISHED}")
    if not rows:
        raise DataError(f"{path}: has no rows")
    named: dict[str, str] = {}
    for place, row in rows if name else ():
        if (other := named.setdefault(str(row[name]), place)) != place:
            raise DataError(f"{path}: {place} has the {name} {row[name]}, as {other}: give each row one of its own")
    return [row for _, row in rows]


def _placed_rows(path: Path) -> list[tuple[str, Any]]:
    """Return what a file has, each with its place in it."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")  # what Windows tools write before a text is none of it
        if text.lstrip().startswith("["):
            return [(f"row {number}", row) for number, row in enumerate(json.loads(text), 1)]
        lines = enumerate(text.split("\n"), 1)
        return [(f"line {number}", json.loads(line)) for number, line in lines if line.strip()]
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: can't be read as JSON lines: {error}") from error
