"""What the benchmark of fine-tuning makes of the questions that a package ships."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from arctic_workers.evaluation.suites.spider_match import Schema, exact_match
from benchmarks.shipped import write_spider

SCHEMA = """\
Table: singer. Columns: Singer_ID (number), Song release (text), Is_male (others)
Table: sqlite_sequence. Columns: name (text), seq (text)
Table: concert. Columns: concert_ID (number), Singer_ID (number)"""
QUERY = "SELECT count(*) FROM concert AS T1 JOIN singer AS T2 ON T1.Singer_ID = T2.Singer_ID"


def row(question: str) -> dict[str, object]:
    told = f"Use SQLite. Only these tables and columns:\n{SCHEMA}\n\nQuestion: {question}\n"
    return {"ideal": QUERY, "input": [{"role": "system", "content": told}]}


def test_questions_of_one_schema_share_a_database_in_which_their_queries_run(tmp_path: Path) -> None:
    write_spider(tmp_path / "spider", [row("How many?"), row("And how many?")])
    asked = [json.loads(line) for line in (tmp_path / "spider" / "dev.json").read_text().splitlines()]
    assert [(each["question"], each["query"]) for each in asked] == [("How many?", QUERY), ("And how many?", QUERY)]
    (name,) = {each["db_id"] for each in asked}
    (described,) = [json.loads(line) for line in (tmp_path / "spider" / "tables.json").read_text().splitlines()]
    assert described["column_names_original"][:4] == [[-1, "*"], [0, "Singer_ID"], [0, "Song release"], [0, "Is_male"]]
    assert exact_match(QUERY, QUERY, Schema.of(described))
    with closing(sqlite3.connect(tmp_path / "spider" / "database" / name / f"{name}.sqlite")) as database:
        assert database.execute(QUERY).fetchall() == [(0,)]
