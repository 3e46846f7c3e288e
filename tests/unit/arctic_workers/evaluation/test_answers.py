from textwrap import indent

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


def test_a_block_ends_in_whichever_way_lines_end() -> None:
    answer = f"Sure:\n```python\n{CODE}```\nIt returns x.\n".replace("\n", "\r\n")
    assert python_code(answer, "f") == CODE.replace("\n", "\r\n")
    assert sql_query("```sql\r\nSELECT a\r\n```\r\nThat is all.") == "SELECT a"


def test_a_longer_fence_holds_a_shorter_one() -> None:
    assert python_code(f'````python\nd = """\n```\n"""\n{CODE}````', "f").startswith('d = """\n```\n"""')


def test_a_fence_within_a_list_gives_its_indentation_back() -> None:
    code = "def f(x):\n    if x:\n\n        return x\n"
    answer = "1. The function:\n\n" + indent(f"```python\n{code}```\n", "   ") + "2. That is all.\n"
    assert python_code(answer, "f") == code
    # A line has no more taken off than it has, and no more than its fence.
    assert python_code("  ```python\ndef f(x):\n      return x\n  ```", "f") == "def f(x):\n    return x\n"


def test_a_fence_is_closed_by_a_longer_one_too() -> None:
    assert python_code(f"```python\n{CODE}`````\nIt returns x.", "f") == CODE


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
        "```sql\n-- Those that have age above 20, with select words\nSELECT a -- the name\n  /* of */ FROM t;\n```",
        "Here's a query with the answer -- it's short:\nSELECT a -- the name\nFROM t",
    ],
)
def test_the_first_statement_is_the_query(text: str) -> None:
    assert sql_query(text) == "SELECT a FROM t"


@pytest.mark.parametrize(
    "query",
    [
        "WITH b AS (SELECT 1) SELECT * FROM b",
        "with recursive b(n, m) as (select 1, 2) select n from b",
        "SELECT a FROM t WHERE b = 'x;y' AND c = '--' AND d = \"/*\" AND e = 'it''s'",
    ],
)
def test_a_query_keeps_what_is_quoted_and_what_it_begins_with(query: str) -> None:
    assert sql_query(f"With this:\n```sql\n{query}; SELECT 2\n```") == query
    assert sql_query(query) == query
