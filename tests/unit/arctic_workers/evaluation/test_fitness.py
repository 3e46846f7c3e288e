"""A judge that errs on its own answers is unfit, whatever the model says."""

import json
from pathlib import Path
from typing import Any

import pytest

from arctic_workers.evaluation.fitness import fitness
from arctic_workers.evaluation.sandbox import Sandbox
from arctic_workers.evaluation.suites.programming import humaneval_plus

ADD: dict[str, Any] = {
    "task_id": "HumanEval/53",
    "prompt": 'def add(x: int, y: int):\n    """Add two numbers x and y"""\n',
    "entry_point": "add",
    "canonical_solution": "    return x + y\n",
    "base_input": [[0, 1]],
    "plus_input": [],
    "atol": 0,
}


@pytest.mark.parametrize(
    ("solution", "problem"),
    [
        ("    return x + y\n", ""),
        ("    return 'constant'\n", "constant answer of HumanEval/53: passed"),
        ("    return None\n", "prompt answer of HumanEval/53: passed"),
        ("    import socket; return socket.socket()\n", "the gold solution of HumanEval/53 fails here: raised"),
    ],
)
def test_a_judge_is_fit_where_gold_alone_is_right(
    sandbox: Sandbox, tmp_path: Path, solution: str, problem: str
) -> None:
    path = tmp_path / "HumanEvalPlus.jsonl"
    path.write_text(json.dumps({**ADD, "canonical_solution": solution}))
    found = fitness(humaneval_plus(path, sandbox), workers=1)
    if not problem:
        assert found.problem == ""
        assert found.shares == {"gold": 1.0, "empty": 0.0, "constant": 0.0, "prompt": 0.0}
    assert problem in found.problem
