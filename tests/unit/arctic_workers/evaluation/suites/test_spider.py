"""Spider on a database of its published form, and the traps that others' comparisons fall into."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_suites import QUESTIONS, TABLES, write_spider

from arctic_workers.evaluation.sandbox import Sandbox
from arctic_workers.evaluation.suites.form import Answer, DataError
from arctic_workers.evaluation.suites.spider import EXACT, EXECUTION, NO_DISTINCT, Spider
from arctic_workers.evaluation.suites.spider_match import Schema, exact_match
from arctic_workers.evaluation.suites.spider_rows import same_rows

pytestmark = pytest.mark.processes

NAMES = [f"spider/{number}" for number in range(len(QUESTIONS))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spider")
    write_spider(folder)
    return folder


@pytest.fixture(scope="module")
def spider(folder: Path, sandbox: Sandbox) -> Spider:
    return Spider(folder, sandbox)


def marks(spider: Spider, number: int, query: str) -> dict[str, int]:
    verdict = spider.judge(NAMES[number], Answer(query, is_chat=True))
    return {name: mark[0] for name, mark in verdict.marks.items()}


def test_gold_queries_are_right_by_both_measures_and_others_by_none(spider: Spider) -> None:
    for probe in spider.probes():
        verdict = spider.judge(probe.question, probe.answer)
        assert verdict.passed == probe.passes, (probe, verdict)
        assert verdict.marks[EXACT] == (int(probe.passes), 1), (probe, verdict)


def test_a_missing_distinct_is_wrong_though_the_published_script_forgives_it(spider: Spider) -> None:
    assert marks(spider, 0, "SELECT Country FROM Singer") == {EXECUTION: 0, EXACT: 1, NO_DISTINCT: 1}


def test_the_order_counts_where_the_gold_query_orders(spider: Spider) -> None:
    assert marks(spider, 1, "SELECT Name FROM Singer ORDER BY Age")[EXECUTION] == 0
    assert marks(spider, 2, "SELECT Name, Age FROM Singer ORDER BY Age")[EXECUTION] == 1


def test_columns_may_be_exchanged_and_values_may_not_be_scrambled(spider: Spider) -> None:
    assert marks(spider, 2, "SELECT Age, Name FROM Singer")[EXECUTION] == 1
    # Sorted column by column, these rows are the right ones.
    scrambled = "SELECT a.Name, b.Age FROM Singer a JOIN Singer b ON b.Id = a.Id % 3 + 1"
    assert marks(spider, 2, scrambled)[EXECUTION] == 0


def test_the_other_side_of_a_foreign_key_is_the_same_column(spider: Spider) -> None:
    by_id = "select t1.name, count(*) from singer t1 join concert t2 on t1.id = t2.singer_id group by t1.id"
    assert marks(spider, 3, by_id) == {EXECUTION: 1, EXACT: 1, NO_DISTINCT: 1}


HOSTILE = {
    "writes": "DELETE FROM Singer",
    "writes behind a question": "WITH x AS (SELECT 1) INSERT INTO Singer SELECT 9, 'x', 1, 'y' FROM x",
    "reads another file": "ATTACH DATABASE '/etc/passwd' AS other",
    "asks how it is set": "PRAGMA database_list",
    "loads a library": "SELECT load_extension('/tmp/x.so')",
    "never ends": "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x FROM c) SELECT count(*) FROM c",
    "is two": "SELECT Name FROM Singer WHERE Age > 100 UNION SELECT Name FROM Singer; SELECT 1",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_queries_that_do_other_than_ask_do_not_score(
    spider: Spider, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arctic_workers.evaluation.suites.spider._LEAST_SECONDS", 1)
    file = folder / "database" / "shop" / "shop.sqlite"
    before = file.read_bytes()
    verdict = spider.judge(NAMES[4], Answer(f"```sql\n{HOSTILE[name]}\n```", is_chat=True))
    assert not verdict.passed
    assert verdict.marks[EXECUTION] == (0, 1)
    assert file.read_bytes() == before


def test_rows_of_many_columns_are_a_bag_too(folder: Path, sandbox: Sandbox, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    gold = "SELECT T1.*, T2.*, T1.Age, T2.Year FROM Singer AS T1 JOIN Concert AS T2"
    (tmp_path / "dev.json").write_text(json.dumps([{"question": "All", "query": gold, "db_id": "shop"}]))
    wide = Spider(tmp_path, sandbox)
    assert marks(wide, 0, f"{gold} ORDER BY T1.Id DESC, T2.Concert_Id")[EXECUTION] == 1
    assert marks(wide, 0, gold.replace("T1.*, T2.*", "T2.*, T1.*"))[EXECUTION] == 1
    assert marks(wide, 0, gold.replace("T1.Age, T2.Year", "T1.Age, T1.Age"))[EXECUTION] == 0


def test_columns_that_are_alike_take_no_time_where_others_differ() -> None:
    alike = [("a",) * 14 + (number,) for number in range(3)]
    assert not same_rows(alike, [("a",) * 13 + (number, number) for number in range(3)], ordered=False)
    assert same_rows(alike, [row[::-1] for row in alike], ordered=False)


def test_a_folder_may_have_any_name(folder: Path, sandbox: Sandbox, tmp_path: Path) -> None:
    odd = tmp_path / "of #1 or 50%20?"
    shutil.copytree(folder, odd)
    named = Spider(odd, sandbox)
    assert "CREATE TABLE Singer" in named.questions[0].chat
    assert marks(named, 0, QUESTIONS["Which countries are there?"])[EXECUTION] == 1


def test_what_is_missing_of_a_folder_is_named(folder: Path, sandbox: Sandbox, tmp_path: Path) -> None:
    for name in ("tables.json", "dev.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    with pytest.raises(DataError, match=r"shop/shop\.sqlite is missing"):
        Spider(tmp_path, sandbox)


ROWS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.sampled_from("ab")), min_size=1, max_size=6)


@settings(max_examples=60)
@given(ROWS, st.permutations(range(3)), st.randoms())
def test_rows_are_the_same_in_any_order_of_columns_and_in_no_other_combination(rows, order, random) -> None:  # type: ignore[no-untyped-def]
    moved = [tuple(row[column] for column in order) for row in rows]
    shuffled = random.sample(moved, len(moved))
    assert same_rows(rows, shuffled, ordered=False)
    assert same_rows(rows, moved, ordered=True)
    assert not same_rows(rows, [*shuffled, shuffled[0]], ordered=False)
    assert not same_rows(rows, [(9, *row[1:]) for row in rows], ordered=False)


SCHEMA = Schema.of(TABLES)
SAME = [
    (
        "SELECT name FROM singer WHERE age > 20 AND country = 'x'",
        "SELECT Name FROM Singer WHERE country = 'y' AND age > 1",
    ),
    ("SELECT name, age FROM singer", "SELECT T1.age, T1.name FROM singer AS T1"),
    ("SELECT count(DISTINCT age) FROM singer", "SELECT count(age) FROM singer"),
    ("SELECT name FROM singer ORDER BY age LIMIT 1", "SELECT name FROM singer ORDER BY age ASC LIMIT 3"),
    ("SELECT name FROM singer WHERE age BETWEEN 1 AND 2", "SELECT name FROM singer WHERE age BETWEEN 3 AND 4"),
    ('SELECT name FROM singer WHERE country = "x"', "SELECT name FROM singer WHERE country = 'x'"),
    (
        "SELECT name FROM singer WHERE id NOT IN (SELECT singer_id FROM concert)",
        "SELECT name FROM singer WHERE id NOT IN (SELECT singer_id FROM concert)",
    ),
]
OTHER = [
    ("SELECT name FROM singer WHERE age > 20 AND id = 1", "SELECT name FROM singer WHERE age > 20 OR id = 1"),
    ("SELECT name FROM singer", "SELECT age FROM singer"),
    ("SELECT max(age) FROM singer", "SELECT min(age) FROM singer"),
    ("SELECT name FROM singer ORDER BY age", "SELECT name FROM singer ORDER BY age DESC"),
    ("SELECT name FROM singer ORDER BY age", "SELECT name FROM singer ORDER BY age LIMIT 1"),
    ("SELECT name FROM singer", "SELECT T1.name FROM singer AS T1 JOIN concert AS T2 ON T1.id = T2.singer_id"),
    ("SELECT country FROM singer GROUP BY country", "SELECT country FROM singer GROUP BY country HAVING count(*) > 1"),
    (
        "SELECT name FROM singer UNION SELECT year FROM concert",
        "SELECT name FROM singer EXCEPT SELECT year FROM concert",
    ),
    (
        "SELECT name FROM singer WHERE id IN (SELECT singer_id FROM concert)",
        "SELECT name FROM singer WHERE id NOT IN (SELECT singer_id FROM concert)",
    ),
    (
        "SELECT name FROM singer WHERE id IN (SELECT singer_id FROM concert)",
        "SELECT name FROM singer WHERE id IN (SELECT concert_id FROM concert)",
    ),
    ("SELECT name FROM singer", "not SQL ("),
    (
        "SELECT T1.name FROM singer AS T1 JOIN concert AS T2 ON T1.id = T2.singer_id",
        "SELECT T1.name FROM singer AS T1 JOIN concert AS T1 ON T1.id = T1.singer_id",
    ),
]


@pytest.mark.parametrize(("gold", "said"), SAME)
def test_queries_of_the_same_parts_match(gold: str, said: str) -> None:
    assert exact_match(said, gold, SCHEMA)


@pytest.mark.parametrize(("gold", "said"), OTHER)
def test_queries_of_other_parts_do_not(gold: str, said: str) -> None:
    assert not exact_match(said, gold, SCHEMA)
    assert exact_match(gold, gold, SCHEMA)


@pytest.mark.parametrize(
    "said",
    [
        "SELECT count() FROM singer",
        "SELECT name FROM singer ORDER BY count()",
        "SELECT name FROM singer GROUP BY name HAVING count() > 1",
        "SELECT count(DISTINCT) FROM singer",
        "SELECT name FROM singer WHERE id IN (SELECT id FROM concert FETCH FIRST 1 ROWS ONLY)",
    ],
)
def test_what_the_parser_can_not_make_a_whole_tree_of_is_no_match_and_no_crash(said: str) -> None:
    assert not exact_match(said, "SELECT count(*) FROM singer", SCHEMA)
