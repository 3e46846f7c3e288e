"""What an evaluation's folder says of it: its results, and examples of how answers failed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arctic_workers.evaluation.records import read_lines
from arctic_workers.evaluation.run import ANSWERS, RESULTS, VERDICTS
from arctic_workers.evaluation.verdict import PASSED

EXAMPLES = 3
"""Shown of each kind of failure."""


@dataclass(frozen=True)
class Example:
    """One answer that failed."""

    question: str
    prompt: str
    answer: str
    message: str


@dataclass(frozen=True)
class Evaluated:
    """One model's evaluation, read from its folder."""

    name: str
    results: Mapping[str, Any]
    examples: Mapping[str, Mapping[str, Sequence[Example]]]
    """By suite and kind of failure."""

    @classmethod
    def read(cls, folder: Path) -> "Evaluated":
        """Read a folder; FileNotFoundError if no evaluation has ended in it."""
        path = folder / RESULTS
        if not path.exists():
            raise FileNotFoundError(f"{folder} has no {RESULTS}: name the folder of an evaluation that has ended")
        results = json.loads(path.read_text())
        examples = {name: _examples(folder / name) for name in results["suites"]}
        return cls(results["model"], results, examples)

    def suite(self, name: str) -> Mapping[str, Any]:
        """Return what the results have of a suite."""
        found: Mapping[str, Any] = self.results["suites"][name]
        return found


def _examples(folder: Path) -> dict[str, list[Example]]:
    chosen: dict[str, list[dict[str, Any]]] = {}
    for verdict in sorted(read_lines(folder / VERDICTS), key=lambda line: (line["question"], line["sample"])):
        of_kind = chosen.setdefault(verdict["kind"], [])
        if verdict["kind"] != PASSED and len(of_kind) < EXAMPLES:
            of_kind.append(verdict)
    wanted = {(line["question"], line["sample"]) for lines in chosen.values() for line in lines}
    answers = {
        key: line for line in read_lines(folder / ANSWERS) if (key := (line["question"], line["sample"])) in wanted
    }
    return {
        kind: [
            Example(
                question=line["question"],
                prompt=answers.get((line["question"], line["sample"]), {}).get("prompt", ""),
                answer=answers.get((line["question"], line["sample"]), {}).get("text", ""),
                message=line["message"],
            )
            for line in lines
        ]
        for kind, lines in chosen.items()
        if lines
    }
