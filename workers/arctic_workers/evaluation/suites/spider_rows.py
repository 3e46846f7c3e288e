"""Whether two queries' rows are the same, by the rules of `exec_eval.py` (taoyds/test-suite-sql-eval).

Rows are a bag, and a list where the gold query orders them; columns may come in another order, one for all rows.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

Rows = Sequence[tuple[Any, ...]]
_MOST_ORDERS = 40_320
"""Orders of a result's columns that are tried: all of eight."""
_DISTINCT = re.compile(r"\bdistinct\b", re.IGNORECASE)
_ORDERED = re.compile(r"\border\s+by\b", re.IGNORECASE)
_THIS_YEAR = re.compile(r"YEAR\s*\(\s*CURDATE\s*\(\s*\)\s*\)\s*", re.IGNORECASE)


def as_run(query: str) -> str:
    """Return a query as it is run: comparisons that a tokenizer has torn apart are put together."""
    for torn, whole in (("> =", ">="), ("< =", "<="), ("! =", "!=")):
        query = query.replace(torn, whole)
    return _THIS_YEAR.sub("2020", query)


def without_distinct(query: str) -> str:
    """Return a query without DISTINCT, as the published script compares them unless it is told --keep_distinct."""
    return _DISTINCT.sub("", query)


def is_ordered(query: str) -> bool:
    """Return whether the order of a query's rows counts."""
    return bool(_ORDERED.search(query))


def same_rows(gold: Rows, said: Rows, *, ordered: bool) -> bool:
    """Return whether there is an order of the columns with which the rows are the same."""
    if len(gold) != len(said):
        return False
    if not gold:
        return True
    if len(gold[0]) != len(said[0]):
        return False
    wanted: Any = list(gold) if ordered else Counter(gold)
    for order in islice(_orders(gold, said), _MOST_ORDERS):
        moved = [tuple(row[column] for column in order) for row in said]
        if wanted == (moved if ordered else Counter(moved)):
            return True
    return False


def _orders(gold: Rows, said: Rows) -> Iterator[tuple[int, ...]]:
    """Return the orders in which each column has the values of the gold one; the order as it stands is first."""
    wanted, columns = ([Counter(values) for values in zip(*rows, strict=True)] for rows in (gold, said))
    fitting = []
    for place, values in enumerate(wanted):
        fits = [column for column, has in enumerate(columns) if has == values]
        if len(fits) != wanted.count(values):
            return iter(())  # sought for, that would take as long as there are orders of those that are alike
        fitting.append([*({place} & set(fits)), *(column for column in fits if column != place)])

    def extend(chosen: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(chosen) == len(fitting):
            yield chosen
            return
        for column in fitting[len(chosen)]:
            if column not in chosen:
                yield from extend((*chosen, column))

    return extend(())
