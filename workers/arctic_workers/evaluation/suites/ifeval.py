"""IFEval: instructions whose being followed can be checked, such as a number of words."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from arctic_workers.evaluation.scores import Parts, Verdicts, share
from arctic_workers.evaluation.suites.form import Answer, DataError, Probe, Question, read_rows
from arctic_workers.evaluation.suites.ifeval_checkers import CHECKERS
from arctic_workers.evaluation.verdict import PASSED, Verdict

PROMPT_STRICT, INSTRUCTION_STRICT = "prompt strict", "instruction strict"
PROMPT_LOOSE, INSTRUCTION_LOOSE = "prompt loose", "instruction loose"


@dataclass(frozen=True)
class Prompt:
    """A prompt with the instructions in it."""

    text: str
    instructions: Sequence[tuple[str, Mapping[str, Any]]]


class IfEval:
    """Prompts in the published format (`input_data.jsonl`): key, prompt, instruction_id_list, kwargs."""

    name = "ifeval"
    rules = (
        "lm-eval 0.4.13's checkers, strict and loose, by prompt and by instruction. Different: the language detector "
        "has a fixed seed, and a letter that is none of a to z is counted as it stands."
    )

    def __init__(self, path: Path) -> None:
        fields = {"key": int | str, "prompt": str, "instruction_id_list": list, "kwargs": list}
        rows = read_rows(path, fields, name="key")
        self._prompts = {f"ifeval/{row['key']}": _read(path, row) for row in rows}

    @cached_property
    def questions(self) -> Sequence[Question]:
        """The prompts, in the file's order."""
        return [Question(name, prompt.text, prompt.text, max_tokens=1280) for name, prompt in self._prompts.items()]

    def judge(self, question: str, answer: Answer) -> Verdict:
        """Check each instruction on the answer as it stands, then on what is left of it without its frame."""
        instructions = self._prompts[question].instructions
        strict = [follows(answer.text, *instruction) for instruction in instructions]
        loose = [any(follows(text, *instruction) for text in loosened(answer.text)) for instruction in instructions]
        marks = {
            PROMPT_STRICT: (int(all(strict)), 1),
            INSTRUCTION_STRICT: (sum(strict), len(strict)),
            PROMPT_LOOSE: (int(all(loose)), 1),
            INSTRUCTION_LOOSE: (sum(loose), len(loose)),
        }
        broken = [name for (name, _), kept in zip(instructions, strict, strict=True) if not kept]
        if not broken:
            return Verdict(PASSED, "", marks)
        return Verdict(broken[0], f"not followed: {', '.join(broken)}", marks)

    def figures(self, verdicts: Verdicts) -> Mapping[str, Parts]:
        """Return all four figures."""
        measures = (PROMPT_STRICT, INSTRUCTION_STRICT, PROMPT_LOOSE, INSTRUCTION_LOOSE)
        return {measure: share(verdicts, measure) for measure in measures}

    def probes(self) -> Iterator[Probe]:
        """Return empty answers. There are no gold ones, and a copied prompt may well follow what it asks for."""
        for name in self._prompts:
            yield Probe("empty", name, Answer("", is_chat=True), passes=False)


def follows(text: str, instruction: str, asked: Mapping[str, Any]) -> bool:
    """Return whether a text follows one instruction; an empty one follows none."""
    return bool(text.strip()) and CHECKERS[instruction][1](text, asked)


def loosened(text: str) -> list[str]:
    """Return the texts of which one has to follow an instruction loosely: without first or last line, or asterisks."""
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(part.replace("*", "") for part in cut)]


def _read(path: Path, row: Mapping[str, Any]) -> Prompt:
    instructions = []
    if len(row["instruction_id_list"]) != len(row["kwargs"]):
        raise DataError(f"{path}: key {row['key']} has not as many kwargs as instructions")
    for name, given in zip(row["instruction_id_list"], row["kwargs"], strict=True):
        if name not in CHECKERS:
            raise DataError(f"{path}: key {row['key']}: nothing here checks the instruction {name}")
        asked = {key: value for key, value in (given or {}).items() if value is not None}
        if missing := [key for key in CHECKERS[name][0] if key not in asked]:
            raise DataError(f"{path}: key {row['key']}: {name} has no {', '.join(missing)}")
        try:
            CHECKERS[name][1]("Any text.", asked)
        except (re.error, TypeError, ValueError, AttributeError) as error:  # words are patterns, as published
            raise DataError(f"{path}: key {row['key']}: {name} can't be checked: {error}: {asked}") from error
        instructions.append((name, asked))
    return Prompt(row["prompt"], instructions)
