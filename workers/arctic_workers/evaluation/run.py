"""Evaluates one model on suites: asks what is not yet answered, judges, and sums up."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from arctic_workers.evaluation.endpoint import Endpoint, RefusedError, Sampling
from arctic_workers.evaluation.fitness import Fitness, fitness
from arctic_workers.evaluation.progress import DONE, NOT_RUN, UNFIT, Progress
from arctic_workers.evaluation.records import Lines, claim
from arctic_workers.evaluation.sandbox import Sandbox
from arctic_workers.evaluation.scores import ENTERPRISE, TOTAL, Parts, Score, Verdicts, enterprise_intelligence, score
from arctic_workers.evaluation.serving import ModelError
from arctic_workers.evaluation.suites.form import Answer, DataError, Question, Suite
from arctic_workers.evaluation.suites.gsm8k import Gsm8k
from arctic_workers.evaluation.suites.ifeval import IfEval
from arctic_workers.evaluation.suites.perplexity import Perplexity
from arctic_workers.evaluation.suites.programming import humaneval, humaneval_plus, mbpp_plus
from arctic_workers.evaluation.suites.spider import Spider
from arctic_workers.evaluation.verdict import Verdict
from arctic_workers.training.files import write_json

RESULTS, ANSWERS, VERDICTS, READ = "results.json", "answers.jsonl", "verdicts.jsonl", "read.jsonl"
SUITES: dict[str, Callable[[Path, Callable[[], Sandbox]], Suite]] = {
    "humaneval": lambda path, sandbox: humaneval(path, sandbox()),
    "humaneval-plus": lambda path, sandbox: humaneval_plus(path, sandbox()),
    "mbpp-plus": lambda path, sandbox: mbpp_plus(path, sandbox()),
    "spider": lambda path, sandbox: Spider(path, sandbox()),
    "ifeval": lambda path, _: IfEval(path),
    "gsm8k": lambda path, _: Gsm8k(path),
}
"""Suites of questions and answers by name; `Perplexity` stands apart, as nothing is answered there."""
NAMES = (*SUITES, Perplexity.name)
_TRIED = 16
"""Most answers that a suite of which nothing is answered yet asks for before all others, from all over it: if each is
refused, it is the way of asking that is, which says nothing of the model.
"""
_NO_MEAN = "enterprise intelligence takes humaneval-plus, mbpp-plus, spider and ifeval, each run and fit"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and how."""

    model: str
    """What the model is called in results."""
    data: Mapping[str, Path]
    """By suite, where its data are."""
    sampling: Sampling
    folder: Path
    workers: int
    """How many questions are asked, and answers judged, at once."""


@dataclass(frozen=True)
class _Course:
    """An evaluation, whom it asks, and who hears of it."""

    evaluation: Evaluation
    endpoint: Endpoint
    say: Say
    progress: Progress


def evaluate_model(
    evaluation: Evaluation,
    endpoint: Endpoint,
    sandbox: Callable[[], Sandbox],
    say: Say,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run an evaluation, write its results, and return them; `progress` knows meanwhile how far it is.

    Raises:
        DataError: a suite's data are not what is published.
        SandboxError: code has to be run, and can't be confined here.
        ModelError: the model's server refuses whatever a suite asks.
        EndpointError: the model does not answer.
    """
    course = _Course(evaluation, endpoint, say, progress or Progress(evaluation.data))
    suites: dict[str, Any] = {}
    parts: dict[tuple[str, str], Parts] = {}
    for name in NAMES:
        path = evaluation.data.get(name)
        if path is None:
            suites[name] = {"state": NOT_RUN, "why": "no data were given"}
            continue
        if name == Perplexity.name:
            suites[name] = _read_all(Perplexity(path), course)
        else:
            suites[name] = _run_suite(SUITES[name](path, sandbox), course, parts)
        course.progress.end(name, suites[name])
    results = {
        "model": evaluation.model,
        "sampling": asdict(evaluation.sampling),
        "suites": suites,
        TOTAL: _enterprise(parts),
    }
    write_json(evaluation.folder / RESULTS, results)
    return results


def _run_suite(suite: Suite, course: _Course, parts: dict[tuple[str, str], Parts]) -> dict[str, Any]:
    evaluation, say = course.evaluation, course.say
    path = evaluation.data[suite.name]
    data = {"path": str(path), "sha256": digest(path)}
    claim(evaluation.folder / suite.name, {"data": data["sha256"]})
    described: dict[str, Any] = {"data": data, "rules": suite.rules}
    course.progress.begin(suite.name, len(suite.questions) * evaluation.sampling.samples)
    say(f"{suite.name}: trying the judge on {len(suite.questions)} questions' own answers")
    found = _fitness(suite, evaluation)
    described["judge"] = dict(found.shares)
    if found.problem:
        say(f"{suite.name}: unfit here: {found.problem}")
        return {"state": UNFIT, "why": found.problem, **described}
    answers = _ask(suite, course)
    verdicts = _judge(suite, course, answers)
    figures = suite.figures(verdicts)
    parts |= {(suite.name, name): part for name, part in figures.items()}
    failures = Counter(verdict.kind for each in verdicts.values() for verdict in each if not verdict.passed)
    scores = {name: asdict(score(part)) for name, part in figures.items()}
    main = next(iter(scores))
    by_question = dict(zip(verdicts, figures[main].values, strict=True))
    say(f"{suite.name}: {main} {scores[main]['value']:.4f} ({scores[main]['low']:.4f} to {scores[main]['high']:.4f})")
    return {
        "state": DONE,
        "questions": len(suite.questions),
        "figures": scores,
        "main figure": main,
        "by question": by_question,
        "failures": dict(failures.most_common()),
        **described,
    }


def _fitness(suite: Suite, evaluation: Evaluation) -> Fitness:
    """Return how the judge fared on its own answers: once in a folder, if it fared well."""
    path = evaluation.folder / suite.name / "judge.json"
    if path.exists():
        return Fitness(json.loads(path.read_text()), "")
    found = fitness(suite, evaluation.workers)
    if not found.problem:
        write_json(path, dict(found.shares))
    return found


Key = tuple[str, int]
"""A question and the number of a sample."""


def _ask(suite: Suite, course: _Course) -> dict[Key, dict[str, Any]]:
    """Return all answers, those that were there before among them; ModelError if all that are tried are refused."""
    evaluation, progress = course.evaluation, course.progress
    wanted = [(question, sample) for question in suite.questions for sample in range(evaluation.sampling.samples)]
    with closing(Lines(evaluation.folder / suite.name / ANSWERS)) as lines:
        answers: dict[Key, dict[str, Any]] = {(line["question"], line["sample"]): line for line in lines.before}
        missing = [(question, sample) for question, sample in wanted if (question.name, sample) not in answers]
        progress.answered(suite.name, len(wanted) - len(missing))
        if missing:
            course.say(f"{suite.name}: asking for {len(missing)} answers")

        def keep(line: dict[str, Any]) -> dict[str, Any]:
            lines.add(line)
            progress.answered(suite.name)
            return line

        def ask(each: tuple[Question, int]) -> dict[str, Any]:
            return keep(_answer_line(course, *each))

        def try_one(each: tuple[Question, int]) -> dict[str, Any]:
            line = _answer_line(course, *each)
            return line if "refused" in line else keep(line)

        is_answered = any("refused" not in line for line in answers.values())
        tried, others = ([], missing) if is_answered else _spread(missing)
        found = _map(try_one, tried, evaluation.workers)
        refused = [line for line in found if "refused" in line]
        if refused and refused == found:
            raise ModelError(
                f"{suite.name}: the model's server refuses all of the {len(found)} questions that were tried; to the "
                f"first it {found[0]['refused']}: mend what it names (the model's name, how long its context is, what "
                "its API takes) and evaluate again, or leave the suite out"
            )
        for line in refused:
            keep(line)
        for line in [*found, *_map(ask, others, evaluation.workers)]:
            answers[line["question"], line["sample"]] = line
    return {(question.name, sample): answers[question.name, sample] for question, sample in wanted}


def _answer_line(course: _Course, question: Question, sample: int) -> dict[str, Any]:
    """Return one answer, or why it was refused, as it is kept."""
    line: dict[str, Any] = {"question": question.name, "sample": sample}
    try:
        answer = course.endpoint.ask(question, sample, course.evaluation.sampling)
    except RefusedError as error:
        return line | {"prompt": question.chat, "refused": str(error)}
    return line | {"prompt": question.chat if answer.is_chat else question.text, **asdict(answer)}


def _spread(items: list[Any]) -> tuple[list[Any], list[Any]]:
    """Return up to `_TRIED` items from all over a list, and the others."""
    step = max(-(-len(items) // _TRIED), 1)
    return items[::step], [item for number, item in enumerate(items) if number % step]


def _judge(suite: Suite, course: _Course, answers: Mapping[Key, dict[str, Any]]) -> Verdicts:
    """Return a verdict on each answer; what was judged before is not judged anew."""
    evaluation, progress = course.evaluation, course.progress
    with closing(Lines(evaluation.folder / suite.name / VERDICTS)) as lines:
        known = {(line["question"], line["sample"]): line for line in lines.before}
        missing = [key for key in answers if key not in known]
        progress.judged(suite.name, len(answers) - len(missing))
        if missing:
            course.say(f"{suite.name}: judging {len(missing)} answers")

        def judge(key: Key) -> dict[str, Any]:
            answer = answers[key]
            if "refused" in answer:
                verdict = Verdict("refused by the model's server", answer["refused"])
            else:
                verdict = suite.judge(key[0], Answer(answer["text"], answer["is_chat"]))
            line = {"question": key[0], "sample": key[1], **asdict(verdict)}
            lines.add(line)
            progress.judged(suite.name)
            return line

        for line in _map(judge, missing, evaluation.workers):
            known[line["question"], line["sample"]] = line
    found: dict[str, list[Verdict]] = {}
    for question, sample in answers:
        line = known[question, sample]
        marks = {name: (mark[0], mark[1]) for name, mark in line["marks"].items()}
        found.setdefault(question, []).append(Verdict(line["kind"], line["message"], marks))
    return found


def _read_all(suite: Perplexity, course: _Course) -> dict[str, Any]:
    evaluation, progress = course.evaluation, course.progress
    path = evaluation.data[suite.name]
    data = {"path": str(path), "sha256": digest(path)}
    claim(evaluation.folder / suite.name, {"data": data["sha256"]})
    with closing(Lines(evaluation.folder / suite.name / READ)) as lines:
        read = {line["question"]: (line["nats"], line["tokens"], line["bytes"]) for line in lines.before}
        missing = [passage for passage in suite.passages if passage.name not in read]
        progress.begin(suite.name, len(suite.passages))
        progress.answered(suite.name, len(suite.passages) - len(missing))
        if missing:
            course.say(f"{suite.name}: reading {len(missing)} texts")

        def read_one(passage: Any) -> dict[str, Any]:
            try:
                nats, tokens = course.endpoint.read(passage.text)
            except RefusedError as error:
                raise DataError(f"{path}: {passage.name} can't be read by the model: {error}") from error
            line = {"question": passage.name, "nats": nats, "tokens": tokens, "bytes": len(passage.text.encode())}
            lines.add(line)
            progress.answered(suite.name)
            return line

        for line in _map(read_one, missing, evaluation.workers):
            read[line["question"]] = (line["nats"], line["tokens"], line["bytes"])
    return {
        "state": DONE,
        "questions": len(suite.passages),
        "figures": {name: asdict(figure) for name, figure in suite.figures(read).items()},
        "failures": {},
        "data": data,
        "rules": suite.rules,
    }


def _map(action: Callable[[Any], dict[str, Any]], items: Sequence[Any], workers: int) -> list[dict[str, Any]]:
    """Do something with each item, several at once; the first error ends it, and what is done stays done."""
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(action, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def _enterprise(parts: Mapping[tuple[str, str], Parts]) -> dict[str, Any]:
    found: Score | None = enterprise_intelligence(parts)
    of = {kind: [f"{suite} {figure}" for suite, figure in figures] for kind, figures in ENTERPRISE.items()}
    if found is None:
        missing = [
            suite for figures in ENTERPRISE.values() for suite, figure in figures if (suite, figure) not in parts
        ]
        return {"state": NOT_RUN, "why": f"{_NO_MEAN}; missing: {', '.join(missing)}", "mean of": of}
    return {"state": DONE, **asdict(found), "mean of": of}


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's files with their names."""
    found = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            found.update(str(file.relative_to(path)).encode())
            with file.open("rb") as content:
                found.update(hashlib.file_digest(content, "sha256").digest())
    return found.hexdigest()
