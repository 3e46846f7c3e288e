"""GSM8K: word problems with one number for an answer."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from arctic_workers.evaluation.answers import cut_at
from arctic_workers.evaluation.scores import Parts, Verdicts, share
from arctic_workers.evaluation.suites.form import Answer, Probe, Question, read_rows
from arctic_workers.evaluation.verdict import PASSED, Verdict

# lm-eval 0.4.13, tasks/gsm8k/gsm8k.yaml: its two filters, and what its exact_match ignores.
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_LAST_NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = tuple(map(re.compile, (",", r"\$", r"(?s).*#### ", r"\.$")))
"""One after the other: what ends in a full stop is seen once the rest is gone."""
STOPS = ("Question:", "</s>", "<|im_end|>")
_ASKED = "Think step by step. End with one line that has #### and behind it the answer as a number."
STRICT, FLEXIBLE = "strict match", "flexible extract"


class Gsm8k:
    """Questions in the published format: `question` and `answer`, which ends in `#### NUMBER`."""

    name = "gsm8k"
    rules = (
        "lm-eval 0.4.13's two filters, zero-shot: strict match takes the number after ####, flexible extract the last "
        "number there is. The first is the suite's figure: the last number of a copied question can be right."
    )

    def __init__(self, path: Path) -> None:
        rows = read_rows(path, {"question": str, "answer": str})
        self._golds = {f"gsm8k/{number}": (row["question"], row["answer"]) for number, row in enumerate(rows)}

    @cached_property
    def questions(self) -> Sequence[Question]:
        """The problems, in the file's order."""
        return [
            Question(name, f"{question}\n\n{_ASKED}", f"Question: {question}\n{_ASKED}\nAnswer:", STOPS, max_tokens=512)
            for name, (question, _) in self._golds.items()
        ]

    def judge(self, question: str, answer: Answer) -> Verdict:
        """Compare the number in an answer with the gold one."""
        text = cut_at(answer.text, STOPS)
        gold = _plain(self._golds[question][1])
        strict = _plain(match[1]) if (match := _STRICT.search(text)) else None
        numbers = [next(filter(None, groups)) for groups in _LAST_NUMBER.findall(text)]
        flexible = _plain(numbers[-1]) if numbers else None
        marks = {STRICT: (int(strict == gold), 1), FLEXIBLE: (int(flexible == gold), 1)}
        if strict == gold:
            return Verdict(PASSED, "", marks)
        if strict is None:
            return Verdict("no ####", f"expected #### {gold}; the last number is {flexible}", marks)
        return Verdict("wrong number", f"{strict}, not {gold}", marks)

    def figures(self, verdicts: Verdicts) -> Mapping[str, Parts]:
        """Return both figures."""
        return {measure: share(verdicts, measure) for measure in (STRICT, FLEXIBLE)}

    def probes(self) -> Iterator[Probe]:
        """Return gold, empty, constant and copied answers."""
        for question in self.questions:
            gold = self._golds[question.name][1]
            said = {"gold": gold, "empty": "", "constant": "The answer is #### 123456789123", "prompt": question.chat}
            for kind, text in said.items():
                yield Probe(kind, question.name, Answer(text, is_chat=True), passes=kind == "gold")


def _plain(number: str) -> str:
    for ignored in _IGNORED:
        number = ignored.sub("", number)
    return number.strip().lower()
