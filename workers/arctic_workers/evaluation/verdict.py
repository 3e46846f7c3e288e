"""What a judge says of one answer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from arctic_workers.evaluation.sandbox import Ended, Ending

PASSED = "passed"


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, by each of a suite's measures."""

    kind: str
    """`passed`, or how it failed, in words that failures are sorted by."""
    message: str = ""
    """What the checker said, for people."""
    marks: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """By measure: how many things were right, and of how many."""

    @property
    def passed(self) -> bool:
        """Whether all was right that the suite asks for."""
        return self.kind == PASSED


def of_code(candidate: Ended, checker: Ended) -> dict[str, Any]:
    """Return what a checker of code concluded, whatever became of the two processes: `passed`, `kind`, `message`.

    Only the checker's own words make an answer right.
    """
    try:
        said: dict[str, Any] = json.loads(checker.result)
    except ValueError:
        kind = checker.ending if checker.ending in (Ending.TIMED_OUT, Ending.FILES) else candidate.ending
        if kind in (Ending.DONE, Ending.EXITED):
            kind = Ending.KILLED
        return {"passed": False, "kind": str(kind), "message": _last_lines(checker.printed), "seconds": 0.0}
    if said["kind"] == "ended":
        said |= {"kind": str(_reason(candidate)), "message": _last_lines(candidate.printed) or said["message"]}
    return said


def _reason(candidate: Ended) -> Ending:
    return Ending.EXITED if candidate.ending == Ending.DONE else candidate.ending


def _last_lines(printed: str) -> str:
    return printed.strip()[-1000:]
