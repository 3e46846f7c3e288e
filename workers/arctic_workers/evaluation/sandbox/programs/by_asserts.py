"""Judges a candidate by a test's own code, as HumanEval and MBPP are published: `check(candidate)`, or bare asserts.

The test runs beside the problem's own solution, whose helpers it may use; the function's name is the candidate's.
"""

from collections.abc import Mapping
from typing import IO, Any

from arctic_workers.evaluation.sandbox.programs.asking import Candidate, NoValueError, conclude
from arctic_workers.evaluation.sandbox.programs.modules import new_module


def run(payload: Mapping[str, Any], result: IO[bytes]) -> None:
    """Run `solution` and `test` of `payload`, with the candidate as `entry_point`, and say the verdict."""
    candidate = Candidate(payload["calls"], payload["answers"])
    spent = 0.0

    def ask(*arguments: Any) -> Any:
        nonlocal spent
        try:
            return candidate.call(arguments, max(0.01, payload["seconds"] - spent))
        finally:
            spent += candidate.seconds

    names = new_module("__test__")
    try:
        exec(payload["solution"], names)  # noqa: S102  the data set's own code, confined as well
        names[payload["entry_point"]] = ask
        candidate.loaded()
        exec(payload["test"], names)  # noqa: S102
    except NoValueError as failed:
        conclude(result, passed=False, kind=failed.kind, message=str(failed), seconds=spent)
    except AssertionError as error:
        conclude(result, passed=False, kind="wrong answer", message=str(error)[:2000], seconds=spent)
    except Exception as error:  # what the test does with a value that it did not expect
        message = f"the test raised {type(error).__name__}: {error}"[:2000]
        conclude(result, passed=False, kind="wrong answer", message=message, seconds=spent)
    else:
        conclude(result, passed=True, kind="passed", message="", seconds=spent)
