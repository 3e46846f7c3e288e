import pytest

from arctic_workers.evaluation.answers import HUMANEVAL_STOPS, MBPP_STOPS, cut_at, python_code, sql_query

CODE = "def f(x):\n    return x\n"


@pytest.mark.parametrize(
    "text",
    [
        f"```python\n{CODE}```",
        f"Sure:\n\n```py\n{CODE}```\nIt returns x.",
        f"~~~\n{CODE}~~~",
        f"```\nf(1)\n```\nwith\n```python\n{CODE}```\nand a test\n```python\nassert f(1) == 1\n```",
        f"```bash\npip install f\n```\n```python\n{CODE}",  # cut off
        CODE,
    ],
)
def test_the_block_that_defines_the_function_is_the_program(text: str) -> None:
    assert python_code(text, "f").strip() == CODE.strip()


def test_a_longer_fence_holds_a_shorter_one() -> None:
    assert python_code(f'````python\nd = """\n```\n"""\n{CODE}````', "f").startswith('d = """\n```\n"""')


def test_harnesses_cut_the_same_completion_differently() -> None:
    completion = "    return helper(x)\n\ndef helper(x):\n    return x\n\nprint(f(1))"
    # EvalPlus' stops for HumanEval lose a helper behind the function; those for MBPP keep it.
    assert "def helper" not in cut_at(completion, HUMANEVAL_STOPS)
    kept = cut_at(completion, MBPP_STOPS)
    assert "def helper" in kept
    assert "print" not in kept


@pytest.mark.parametrize(
    "text",
    [
        "SELECT a FROM t",
        "```sql\nSELECT a\nFROM t;\n```",
        "The query is: SELECT a FROM t; it selects a.",
    ],
)
def test_the_first_statement_is_the_query(text: str) -> None:
    assert sql_query(text) == "SELECT a FROM t"
