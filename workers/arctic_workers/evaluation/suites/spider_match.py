"""Exact set match of two queries, by the rules of Spider's `evaluation.py` (taoyds/test-suite-sql-eval), over sqlglot.

Clauses are compared as sets of their parts: values are not compared, nor conditions of joins, nor DISTINCT; columns
that a foreign key makes the same are the same. Within nested queries all of these but values are compared.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

Unit = Any
"""A column's name, or a nested tuple of an operation and its operands."""
Condition = tuple[bool, str, Unit, Any, Any]
"""Negated, operation, what is compared, and the nested queries that it is compared with."""
_AGGREGATES = (exp.Max, exp.Min, exp.Count, exp.Sum, exp.Avg)
_ARITHMETIC = (exp.Add, exp.Sub, exp.Mul, exp.Div)
_COMPARISONS = {
    exp.EQ: "=",
    exp.GT: ">",
    exp.LT: "<",
    exp.GTE: ">=",
    exp.LTE: "<=",
    exp.NEQ: "!=",
    exp.Like: "like",
} | {exp.Is: "is"}
VALUE = "value"


@dataclass(frozen=True)
class Schema:
    """Tables of a database, by lower-case names, and which columns foreign keys make the same."""

    columns: Mapping[str, Sequence[str]]
    same: Mapping[str, str] = field(default_factory=dict)
    """From `table.column` to the one that stands for it."""

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> "Schema":
        """Read one entry of Spider's `tables.json`."""
        tables = [name.lower() for name in described["table_names_original"]]
        names = [
            (tables[table] if table >= 0 else "", name.lower()) for table, name in described["column_names_original"]
        ]
        columns: dict[str, list[str]] = {table: [] for table in tables}
        for table, name in names:
            if table:
                columns[table].append(name)
        groups: list[set[int]] = []
        for pair in described["foreign_keys"]:
            joined = [group for group in groups if group & set(pair)]
            groups = [group for group in groups if group not in joined] + [set(pair).union(*joined)]
        same = {".".join(names[column]): ".".join(names[min(group)]) for group in groups for column in group}
        return cls(columns, same)


@dataclass(frozen=True)
class Query:
    """The parts of a query."""

    distinct: bool
    select: tuple[Unit, ...]
    tables: tuple[Any, ...]
    joins: tuple[Condition, ...]
    where: tuple[Condition, ...]
    groups: tuple[Unit, ...]
    having: tuple[Condition, ...]
    direction: str
    order: tuple[Unit, ...]
    limit: Any
    words: frozenset[str]
    connectives: frozenset[str]
    """Of the conditions in `where`."""
    combined: tuple[tuple[str, "Query"], ...] = ()
    """The queries that are united, intersected or taken away."""


def exact_match(predicted: str, gold: str, schema: Schema) -> bool:
    """Return whether two queries have the same parts; False for a prediction that is no query."""
    try:
        return _match(_read(predicted, schema), _read(gold, schema))
    except (SqlglotError, ValueError, RecursionError, AttributeError, LookupError, TypeError):
        return False  # the parser makes trees that lack parts of some queries that SQLite runs, such as `count()`


def _read(text: str, schema: Schema) -> Query:
    return _Reader(schema, strict=False).query(sqlglot.parse_one(text, read="sqlite"))


def _match(one: Query, other: Query) -> bool:
    return (
        _same_items(one.select, other.select)
        and _same_items(one.where, other.where)
        and _same_items(
            *([unit.rpartition(".")[2] if isinstance(unit, str) else unit for unit in it.groups] for it in (one, other))
        )
        and (not one.groups or (one.groups == other.groups and one.having == other.having))
        and (
            not one.order
            or (one.direction, one.order, one.limit is None) == (other.direction, other.order, other.limit is None)
        )
        and bool(one.order) == bool(other.order)
        and one.connectives == other.connectives
        and one.words == other.words
        and len(one.combined) == len(other.combined)
        and all(a[0] == b[0] and _match(a[1], b[1]) for a, b in zip(one.combined, other.combined, strict=True))
        and _same_items(one.tables, other.tables)
    )


def _same_items(one: Iterable[Any], other: Iterable[Any]) -> bool:
    left, right = list(one), list(other)
    for item in left:
        if item not in right:
            return False
        right.remove(item)
    return not right


class _Reader:
    """Reads queries of one database; strictly, as nested ones are compared, or by what counts at the top."""

    def __init__(self, schema: Schema, *, strict: bool) -> None:
        self._schema = schema
        self._strict = strict
        self._names: dict[str, str] = {}

    def query(self, tree: exp.Expr) -> Query:
        """Read a query, or those that a set operation combines: the first with the others beside it."""
        if isinstance(tree, exp.Subquery):
            tree = tree.unnest()
        if isinstance(tree, exp.SetOperation):
            first = self.query(tree.this)
            kind = type(tree).__name__.lower()
            other = _Reader(self._schema, strict=self._strict).query(tree.expression)
            joined = (*first.combined, (kind, other))
            return replace(first, combined=joined, words=first.words | {kind})
        if not isinstance(tree, exp.Select):
            raise ValueError(f"not a query: {tree.sql()[:100]}")
        return self._select(tree)

    def _select(self, tree: exp.Select) -> Query:
        source = tree.args.get("from") or tree.args.get("from_")
        joins = tree.args.get("joins") or []
        places = [
            place for place in (source.this if source else None, *(join.this for join in joins)) if place is not None
        ]
        aliases = [place.alias_or_name.lower() for place in places if isinstance(place, exp.Table)]
        if len(set(aliases)) < len(aliases):
            raise ValueError("two tables of one name")
        for place in places:
            if isinstance(place, exp.Table):
                self._names[place.alias_or_name.lower()] = place.name.lower()
                self._names.setdefault(place.name.lower(), place.name.lower())
        ons, on_words = self._conditions([join.args["on"] for join in joins if join.args.get("on")])
        where, words = self._conditions([tree.args["where"].this] if tree.args.get("where") else [])
        having, having_words = self._conditions([tree.args["having"].this] if tree.args.get("having") else [])
        order = tree.args["order"].expressions if tree.args.get("order") else []
        group = tree.args["group"].expressions if tree.args.get("group") else []
        limit = tree.args.get("limit")
        # As the original has it, the last direction that is written holds for all.
        direction = "desc" if order and order[-1].args.get("desc") else "asc"
        everything = [*ons, *where, *having]
        present = {"where": where, "group": group, "having": having, "order": order, "limit": limit}
        named = {name for name, part in present.items() if part} | ({direction} if order else set())
        named |= {"or"} & (on_words | words | having_words)
        named |= {"not"} if any(condition[0] for condition in everything) else set()
        named |= {condition[1] for condition in everything} & {"in", "like"}
        return Query(
            distinct=self._strict and bool(tree.args.get("distinct")),
            select=tuple(self._unit(item) for item in tree.expressions),
            tables=tuple(self._table(place) for place in places),
            joins=tuple(ons),
            where=tuple(where),
            groups=tuple(self._unit(item) for item in group),
            having=tuple(having),
            direction=direction if order else "",
            order=tuple(self._unit(item.this) for item in order),
            limit=None if limit is None else limit.expression.sql() if self._strict else "",
            words=frozenset(named),
            connectives=frozenset(words),
        )

    def _table(self, place: exp.Expr) -> Any:
        return place.name.lower() if isinstance(place, exp.Table) else self._nested(place)

    def _nested(self, tree: exp.Expr) -> Query:
        reader = _Reader(self._schema, strict=True)
        reader._names = dict(self._names)  # what is around is seen from within
        return reader.query(tree)

    def _conditions(self, trees: Sequence[exp.Expr]) -> tuple[list[Condition], set[str]]:
        found: list[Condition] = []
        words: set[str] = set()
        for tree in trees:
            while isinstance(tree, exp.Paren):
                tree = tree.this
            if isinstance(tree, exp.And | exp.Or):
                inner, more = self._conditions([tree.left, tree.right])
                words |= more | {"or" if isinstance(tree, exp.Or) else "and"}
                found += inner
            else:
                found.append(self._condition(tree))
        return found, words

    def _condition(self, tree: exp.Expr) -> Condition:
        negated = False
        while isinstance(tree, exp.Not | exp.Paren):
            negated ^= isinstance(tree, exp.Not)
            tree = tree.this
        if isinstance(tree, exp.In):
            query = tree.args.get("query")
            return negated, "in", self._unit(tree.this), self._nested(query) if query is not None else None, None
        if isinstance(tree, exp.Between):
            return (
                negated,
                "between",
                self._unit(tree.this),
                self._value(tree.args["low"]),
                self._value(tree.args["high"]),
            )
        for kind, name in _COMPARISONS.items():
            if isinstance(tree, kind):
                return negated, name, self._unit(tree.this), self._value(tree.expression), None
        if isinstance(tree, exp.Exists):
            return negated, "exists", "", self._nested(tree.this), None
        return negated, "is true", self._unit(tree), None, None

    def _value(self, tree: exp.Expr) -> Query | None:
        """Return a nested query; other values, columns among them, are not compared."""
        tree = tree.unnest()
        return self._nested(tree) if isinstance(tree, exp.Query) else None

    def _unit(self, tree: exp.Expr) -> Unit:
        tree = tree.unalias().unnest() if not isinstance(tree, exp.Query) else tree
        if isinstance(tree, exp.Column):
            return self._column(tree)
        if isinstance(tree, exp.Star):
            return "*"
        if isinstance(tree, exp.Literal | exp.Null | exp.Boolean):
            return VALUE
        if isinstance(tree, exp.Query):
            return self._nested(tree)
        if isinstance(tree, _AGGREGATES):
            inner = tree.this
            distinct = isinstance(inner, exp.Distinct)
            inner = inner.expressions[0] if distinct else inner
            return type(tree).__name__.lower(), self._unit(inner), distinct and self._strict
        if isinstance(tree, _ARITHMETIC):
            return type(tree).__name__.lower(), self._unit(tree.left), self._unit(tree.right)
        return "other", tree.sql(dialect="sqlite", normalize=True).lower()

    def _column(self, tree: exp.Column) -> Unit:
        if isinstance(tree.this, exp.Star):
            return "*"
        name, table = tree.name.lower(), self._names.get(tree.table.lower(), tree.table.lower())
        if not tree.table:
            owners = [
                known for known in dict.fromkeys(self._names.values()) if name in self._schema.columns.get(known, ())
            ]
            # SQLite takes what is in double quotes for a text where there is no such column.
            if not owners and tree.this.args.get("quoted"):
                return VALUE
            table = owners[0] if owners else ""
        whole = f"{table}.{name}"
        return whole if self._strict else self._schema.same.get(whole, whole)
