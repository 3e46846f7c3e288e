"""Suites as they are published, with a few questions each."""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

TABLES = {
    "db_id": "shop",
    "table_names_original": ["Singer", "Concert"],
    "column_names_original": [
        *([-1, "*"], [0, "Id"], [0, "Name"], [0, "Age"], [0, "Country"]),
        *([1, "Concert_Id"], [1, "Singer_Id"], [1, "Year"]),
    ],
    "foreign_keys": [[6, 1]],
}
SCRIPT = """
CREATE TABLE Singer (Id integer primary key, Name text, Age integer, Country text);
CREATE TABLE Concert (Concert_Id integer, Singer_Id integer, Year integer);
INSERT INTO Singer VALUES (1, 'Ann', 30, 'France'), (2, 'Bob', 25, 'Peru'), (3, 'Cid', 41, 'France');
INSERT INTO Concert VALUES (1, 1, 2014), (2, 1, 2015), (3, 3, 2015);
"""
QUESTIONS = {
    "Which countries are there?": "SELECT DISTINCT Country FROM Singer",
    "Names by age": "SELECT Name FROM Singer ORDER BY Age DESC",
    "Names and ages": "SELECT Name , Age FROM Singer",
    "Names of who sang": "SELECT T1.Name , count(*) FROM Singer AS T1 JOIN Concert AS T2 ON T1.Id = T2.Singer_Id "
    "GROUP BY T2.Singer_Id",
    "Who is over 100?": "SELECT Name FROM Singer WHERE Age > 100",
}
"""Spider's, with their gold queries."""
PROMPTS: Sequence[Mapping[str, Any]] = (
    {
        "key": 1000,
        "prompt": "Write a poem in all lower case without commas.",
        "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"],
        "kwargs": [{}, {}],
    },
    {
        "key": 1001,
        "prompt": "Two bullets.",
        "instruction_id_list": ["detectable_format:number_bullet_lists"],
        "kwargs": [{"num_bullets": 2, "num_words": None}],
    },
)
"""IFEval's."""

WITHOUT_COMMAS: Sequence[Mapping[str, Any]] = (
    {"key": 1, "prompt": "Say it!", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
)
"""IFEval's too: what a model has learnt from the one of `COMMAS` does, and not from the other."""
COMMAS = {"plain": "so it is and so it was ", "strewn": "so, it, is, and, so, it, was, "}
"""Texts, by what they are called."""


def write_spider(folder: Path) -> None:
    """Write Spider into a folder that is there."""
    (folder / "tables.json").write_text(json.dumps([TABLES]))
    rows = [{"question": question, "query": query, "db_id": "shop"} for question, query in QUESTIONS.items()]
    (folder / "dev.json").write_text(json.dumps(rows))
    (folder / "database" / "shop").mkdir(parents=True)
    with closing(sqlite3.connect(folder / "database" / "shop" / "shop.sqlite")) as connection:
        connection.executescript(SCRIPT)


def write_ifeval(path: Path, prompts: Sequence[Mapping[str, Any]] = PROMPTS) -> None:
    """Write prompts as IFEval has them."""
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))


def write_commas(folder: Path) -> None:
    """Write a folder a text of `COMMAS`, and what judges who learns from them, `ifeval.jsonl`."""
    for name, text in COMMAS.items():
        (folder / name).mkdir(parents=True)
        for number in range(20):
            (folder / name / f"{number:02}.txt").write_text(text * 100)
    write_ifeval(folder / "ifeval.jsonl", WITHOUT_COMMAS)
