import json
from pathlib import Path

import pytest

from arctic_workers.evaluation.suites.form import Answer
from arctic_workers.evaluation.suites.gsm8k import Gsm8k

ROWS = [
    {"question": "A has 3 apples and buys 1,215. How many?", "answer": "3 + 1215 = <<3+1215=1218>>1218\n#### 1,218"},
    {"question": "Of 12 eggs one is broken. How many were there?", "answer": "There were 12.\n#### 12"},
]


@pytest.fixture
def suite(tmp_path: Path) -> Gsm8k:
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return Gsm8k(path)


def test_gold_answers_are_right_and_empty_constant_and_copied_ones_are_not(suite: Gsm8k) -> None:
    for probe in suite.probes():
        assert suite.judge(probe.question, probe.answer).passed == probe.passes, probe


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("#### 1218", 1, 1),
        ("So\n#### $1,218.", 0, 1),  # as lm-eval has it: behind #### comes no digit
        ("#### 1218.", 1, 1),
        ("It is 1218", 0, 1),
        ("#### 7\nQuestion: and then? #### 1218", 0, 0),
        ("#### 7, or 1218", 0, 1),
        ("so it is $1,218.$", 0, 1),  # what is ignored goes one after the other, as lm-eval has it
        ("#### 1218.,", 1, 1),
    ],
)
def test_numbers_are_taken_by_both_rules(suite: Gsm8k, text: str, strict: int, flexible: int) -> None:
    marks = suite.judge("gsm8k/0", Answer(text, is_chat=True)).marks
    assert (marks["strict match"][0], marks["flexible extract"][0]) == (strict, flexible)
