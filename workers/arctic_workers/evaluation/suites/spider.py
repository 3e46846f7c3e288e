"""Spider: questions on databases, answered by a query that is run on them."""

import json
import math
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from arctic_workers.evaluation.answers import cut_at, sql_query
from arctic_workers.evaluation.sandbox import Ending, Limits, Program, Sandbox
from arctic_workers.evaluation.sandbox.programs.values import NotPlainError, decode
from arctic_workers.evaluation.scores import Parts, Verdicts, share
from arctic_workers.evaluation.suites.form import Answer, DataError, Probe, Question, read_rows
from arctic_workers.evaluation.suites.spider_match import Schema, exact_match
from arctic_workers.evaluation.suites.spider_rows import as_run, is_ordered, same_rows, without_distinct
from arctic_workers.evaluation.verdict import PASSED, Verdict

EXECUTION, EXACT, NO_DISTINCT = "execution", "exact set match", "execution, DISTINCT dropped"
_TABLES = ("table_names_original", "column_names_original", "foreign_keys")
STOPS = (";", "\n\n", "</s>")
_GOLD_FACTOR = 10
_LEAST_SECONDS = 5


@dataclass(frozen=True)
class Item:
    """A question with its gold query."""

    question: str
    query: str
    database: str


class QueryError(Exception):
    """A query gave no rows; `kind` says how."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Spider:
    """Questions of a folder as Spider is published: `dev.json`, `tables.json`, `database/NAME/NAME.sqlite`."""

    name = "spider"
    rules = (
        "test-suite-sql-eval: execution (rows as a bag, as a list where the gold query has ORDER BY, one order of "
        "columns for all rows) and exact set match. Execution keeps DISTINCT, as --keep_distinct has it; the script's "
        "default, which drops it from both queries, stands beside it."
    )

    def __init__(self, folder: Path, sandbox: Sandbox) -> None:
        rows = read_rows(folder / "dev.json", {"question": str, "query": str, "db_id": str})
        self._items = {
            f"spider/{number}": Item(row["question"], row["query"], row["db_id"]) for number, row in enumerate(rows)
        }
        described = read_rows(folder / "tables.json", {"db_id": str} | dict.fromkeys(_TABLES, list))
        self._schemas = {entry["db_id"]: Schema.of(entry) for entry in described}
        self._files = {name: folder / "database" / name / f"{name}.sqlite" for name in {row["db_id"] for row in rows}}
        self._sandbox = sandbox
        self._golds: dict[str, tuple[Any, float]] = {}
        self._lock = threading.Lock()
        for name, file in sorted(self._files.items()):
            if not file.is_file():
                raise DataError(f"{file} is missing: the folder has to have Spider's databases as they are published")
            if name not in self._schemas:
                raise DataError(f"{folder / 'tables.json'} does not describe {name}, which dev.json asks about")

    @cached_property
    def questions(self) -> Sequence[Question]:
        """The questions, in the file's order, each with its database's tables."""
        tables = {name: _tables(file) for name, file in self._files.items()}
        asked = "Write one SQLite query that answers the question. Answer with the query alone."
        return [
            Question(
                name=name,
                chat=f"{tables[item.database]}\n\n{asked}\nQuestion: {item.question}",
                text=f"{tables[item.database]}\n\n-- {item.question}\nSELECT",
                stops=STOPS,
                max_tokens=256,
            )
            for name, item in self._items.items()
        ]

    def judge(self, question: str, answer: Answer) -> Verdict:
        """Run an answer's query, and compare its rows and its parts with the gold query's."""
        item = self._items[question]
        query = as_run(sql_query(answer.text) if answer.is_chat else "SELECT" + cut_at(answer.text, STOPS))
        gold = as_run(item.query)
        kind, message = PASSED, ""
        try:
            right = self._agrees(item.database, gold, query)
            if not right:
                kind, message = "other rows", f"{query}\nbut it is\n{gold}"
        except QueryError as failed:
            right, kind, message = False, failed.kind, f"{query}\n{failed}"
        try:
            loose = right or self._agrees(item.database, without_distinct(gold), without_distinct(query))
        except QueryError:
            loose = False
        exact = exact_match(query, gold, self._schemas[item.database])
        marks = {EXECUTION: (int(right), 1), EXACT: (int(exact), 1), NO_DISTINCT: (int(loose), 1)}
        return Verdict(kind, message, marks)

    def figures(self, verdicts: Verdicts) -> Mapping[str, Parts]:
        """Return execution accuracy, exact set match, and execution by the script's default."""
        return {measure: share(verdicts, measure) for measure in (EXECUTION, EXACT, NO_DISTINCT)}

    def probes(self) -> Iterator[Probe]:
        """Return gold, empty, constant and copied answers."""
        for question in self.questions:
            said = {"gold": self._items[question.name].query, "empty": "", "constant": "SELECT 'a constant'"}
            for kind, text in (said | {"prompt": question.chat}).items():
                yield Probe(kind, question.name, Answer(text, is_chat=True), passes=kind == "gold")

    def _agrees(self, database: str, gold: str, query: str) -> bool:
        rows, seconds = self._gold(database, gold)
        said = self._rows(database, query, max(_LEAST_SECONDS, math.ceil(_GOLD_FACTOR * seconds)))
        return same_rows(rows, said, ordered=is_ordered(gold))

    def _gold(self, database: str, query: str) -> tuple[Any, float]:
        key = f"{database}\n{query}"
        with self._lock:
            if key in self._golds:
                return self._golds[key]
        began = time.monotonic()
        try:
            rows = self._rows(database, query, 60)
        except QueryError as failed:
            raise DataError(f"spider: a gold query fails on {database}: {failed.kind}: {failed}: {query}") from failed
        with self._lock:
            return self._golds.setdefault(key, (rows, time.monotonic() - began))

    def _rows(self, database: str, query: str, seconds: int) -> Any:
        file = self._files[database].resolve()
        payload = {"database": file.as_uri(), "query": query}
        limits = Limits(cpu_seconds=seconds, wall_seconds=2.0 * seconds)
        ended = self._sandbox.run(Program("query", payload, reads=(file,)), limits)
        if ended.ending != Ending.DONE:
            raise QueryError(str(ended.ending), ended.printed.strip()[-500:])
        try:
            said = json.loads(ended.result)
        except (ValueError, RecursionError) as error:  # SQLite itself was broken into
            raise QueryError("no plain value", str(error)) from error
        if "error" in said:
            raise QueryError(
                "no query" if said["error"] == "not a query" or "syntax error" in said["error"] else "error",
                said["error"],
            )
        try:
            return decode(said["rows"])
        except NotPlainError as error:
            raise QueryError("no plain value", str(error)) from error


def _tables(file: Path) -> str:
    with sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro&immutable=1", uri=True) as connection:
        found = connection.execute(
            "SELECT sql FROM sqlite_master WHERE type = 'table' AND sql IS NOT NULL ORDER BY rowid"
        )
        return "\n".join(" ".join(sql.split()) + ";" for (sql,) in found)
