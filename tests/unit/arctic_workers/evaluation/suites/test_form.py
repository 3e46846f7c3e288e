import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arctic_workers.evaluation.suites.form import Answer, DataError
from arctic_workers.evaluation.suites.gsm8k import Gsm8k
from arctic_workers.evaluation.suites.ifeval import IfEval
from arctic_workers.evaluation.suites.programming import humaneval, humaneval_plus

GSM8K = {"question": "How many?", "answer": "One.\n#### 1"}
IFEVAL = {"key": 7, "prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
HUMANEVAL = {"task_id": "HumanEval/0", "prompt": "", "entry_point": "f", "canonical_solution": "", "test": ""}
PLUS = HUMANEVAL | {"base_input": [[1]], "plus_input": {}, "atol": 0}


def unconfined(read: Any) -> Callable[[Path], Any]:
    return lambda path: read(path, None)  # the data are read before anything is run


@pytest.mark.parametrize(
    ("suite", "row", "field", "value", "says"),
    [
        (Gsm8k, GSM8K, "answer", None, "answer is null"),
        (Gsm8k, GSM8K, "answer", 1, "answer is 1"),
        (IfEval, IFEVAL, "instruction_id_list", None, "instruction_id_list is null"),
        (IfEval, IFEVAL, "kwargs", "[{}]", 'kwargs is "[{}]"'),
        (unconfined(humaneval), HUMANEVAL, "test", ["assert f()"], 'test is ["assert f()"]'),
        (unconfined(humaneval_plus), PLUS, "base_input", {"a": 1}, 'base_input is {"a": 1}'),
        (unconfined(humaneval_plus), PLUS, "atol", "0", 'atol is "0"'),
    ],
)
def test_a_field_of_another_type_is_refused_by_its_place(
    tmp_path: Path, suite: Callable[[Path], Any], row: dict[str, Any], field: str, value: Any, says: str
) -> None:
    other = row | ({"key": 8} if suite is IfEval else {"task_id": "HumanEval/1"})
    path = tmp_path / "data.jsonl"
    path.write_text(f"{json.dumps(row)}\n{json.dumps(other | {field: value})}\n")
    with pytest.raises(DataError) as refused:
        suite(path)
    assert str(refused.value) == f"{path}: line 2: {says}: it is not in the suite's published format"


def test_null_stands_for_no_arguments_of_an_instruction(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(IFEVAL | {"kwargs": [None]}))
    assert IfEval(path).judge("ifeval/7", Answer("Said", is_chat=True)).passed


def test_what_windows_tools_write_before_a_text_is_none_of_it(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(GSM8K), encoding="utf-8-sig")
    assert Gsm8k(path).judge("gsm8k/0", Answer("#### 1", is_chat=True)).passed
