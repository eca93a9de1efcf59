"""From a question to SQL. Values travel as parameters; all names are our own.

Conditions on `time` are those that PostgreSQL prunes partitions by. They are written for the end of a request, too:
it has the decision's time or a later one, by a clock that may have been set back by an hour at most, and next to
always lies within an hour. So ends are looked for there, and only where one is missing in the time after, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from peltast.audit.query.query import Order, Query
from peltast.audit.query.shape import ENDED

__all__ = ["EPOCH", "Statement", "after_leaf", "counts", "rows"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HOUR_US = 3600 * 10**6

_TIME_US = "(extract(epoch FROM first.time) * 1000000)::bigint AS time_us"
_WEIGHT = "CASE WHEN first.kind IN ('summary', 'dropped') THEN coalesce(first.count, 1) ELSE 1 END"
"""How many requests a record stands for."""


@dataclass
class Statement:
    """SQL with its parameters."""

    text: str = ""
    arguments: list[Any] = field(default_factory=list)

    def given(self, value: object) -> str:
        """How the text names `value`."""
        self.arguments.append(value)
        return f"${len(self.arguments)}"

    def time(self, microseconds: int) -> str:
        """How the text names a time."""
        return self.given(EPOCH + timedelta(microseconds=microseconds))


def rows(query: Query) -> Statement:
    """Rows in order of time, and where the clock did not move, of the tree."""
    statement = Statement()
    where = _conditions(statement, query)
    descending = query.order is Order.NEWEST
    if query.after is not None:
        where += _beyond(statement, query.after.time_us, query.after.leaf, "<" if descending else ">")
    direction = " DESC" if descending else ""
    statement.text = _select(statement, query, _row(query), where)
    statement.text += f" ORDER BY first.time{direction}, first.leaf{direction}"
    return _limited(statement, query.limit)


def after_leaf(query: Query, leaf: int, until: int) -> Statement:
    """Rows whose leaf is beyond `leaf` and before `until`, in the order in which they were committed."""
    statement = Statement()
    where = _conditions(statement, query)
    where += [f"first.leaf > {statement.given(leaf)}", f"first.leaf < {statement.given(until)}"]
    statement.text = _select(statement, query, _row(query), where) + " ORDER BY first.leaf"
    return _limited(statement, query.limit)


def counts(query: Query) -> Statement:
    """How many rows there are for each combination of the columns, the most first."""
    statement = Statement()
    total = f"coalesce(sum({_WEIGHT}), 0)::bigint AS count"
    statement.text = _select(statement, query, [*_named(query, query.columns), total], _conditions(statement, query))
    numbers = [str(number + 1) for number in range(len(query.columns))]
    if numbers:
        statement.text += f" GROUP BY {', '.join(numbers)}"
    order = [f"{len(numbers) + 1} DESC", *(f"{number} NULLS FIRST" for number in numbers)]
    statement.text += f" ORDER BY {', '.join(order)}"
    return _limited(statement, query.limit)


def _row(query: Query) -> list[str]:
    place = [_TIME_US, "first.time_ns AS time", "first.leaf"]
    return [*place, *_named(query, tuple(name for name in query.columns if name not in ("time", "leaf")))]


def _named(query: Query, columns: tuple[str, ...]) -> list[str]:
    return [f"{query.shape.columns[name]} AS {name}" for name in columns]


def _select(statement: Statement, query: Query, columns: list[str], where: list[str]) -> str:
    return f"SELECT {', '.join(columns)} FROM {_source(statement, query)} WHERE {' AND '.join(where)}"  # noqa: S608 - our own names only


def _limited(statement: Statement, limit: int | None) -> Statement:
    if limit is not None:
        statement.text += f" LIMIT {statement.given(limit)}"
    return statement


def _beyond(statement: Statement, time_us: int, leaf: int, sign: str) -> list[str]:
    time = statement.time(time_us)
    # The first is in the second; partitions are pruned by it only.
    return [f"first.time {sign}= {time}", f"(first.time, first.leaf) {sign} ({time}, {statement.given(leaf)})"]


def _conditions(statement: Statement, query: Query) -> list[str]:
    shape, columns = query.shape, query.shape.columns
    found = [shape.where, *_times(statement, query)]
    for name, value in query.equal.items():
        found.append(f"{columns[shape.filters[name]]} = {statement.given(value)}")
    if query.path is not None:
        found.append(_path(statement, query))
    if query.code is not None:
        first, last = statement.given(query.code.first), statement.given(query.code.last)
        found.append(f"{columns['status']} BETWEEN {first} AND {last}")
    return found


def _times(statement: Statement, query: Query) -> list[str]:
    """The range, by the column that partitions go by (microseconds), and where that is too coarse by the other."""
    found = []
    if query.since is not None:
        found.append(f"first.time >= {statement.time(query.since // 1000)}")
        if query.since % 1000:
            found.append(f"first.time_ns >= {statement.given(query.since)}")
    if query.until is not None:
        found.append(f"first.time < {statement.time(-(-query.until // 1000))}")
        if query.until % 1000:
            found.append(f"first.time_ns < {statement.given(query.until)}")
    return found


def _path(statement: Statement, query: Query) -> str:
    assert query.path is not None
    value = statement.given(query.path.value)
    if query.path.prefix:
        return f"starts_with(first.path, {value})"
    # A path is recorded with its query string, unless that is kept apart.
    return f"(first.path = {value} OR starts_with(first.path, {value} || '?'))"


def _needs_end(query: Query) -> bool:
    asked = [*query.columns, *(query.shape.filters[name] for name in query.equal), *(["status"] if query.code else [])]
    return any(query.shape.needs_end(name) for name in asked)


def _source(statement: Statement, query: Query) -> str:
    if not _needs_end(query):
        return "records first"
    if query.until is None:
        since = [] if query.since is None else [f"ended.time >= {_moved(statement, query.since, -_HOUR_US)}"]
        return f"records first LEFT JOIN records ended ON {_is_end_of_first('ended', *since)}"
    late = _moved(statement, query.until, _HOUR_US)
    soon = [f"soon.time < {late}"]
    if query.since is not None:
        soon.append(f"soon.time >= {_moved(statement, query.since, -_HOUR_US)}")
    either = ", ".join(f"coalesce(soon.{name}, late.{name}) AS {name}" for name in ENDED)
    after = f"SELECT * FROM records late WHERE {_is_end_of_first('late', f'late.time >= {late}')}"  # noqa: S608
    return (
        f"records first LEFT JOIN records soon ON {_is_end_of_first('soon', *soon)} "
        f"LEFT JOIN LATERAL ({after} AND soon.sequence IS NULL LIMIT 1) late ON true "
        f"CROSS JOIN LATERAL (SELECT {either}) ended"
    )


def _is_end_of_first(end: str, *more: str) -> str:
    conditions = (
        "first.kind = 'decision'",
        f"{end}.kind = 'end'",
        f"{end}.spool = first.spool",
        f"{end}.decision_sequence = first.sequence",
        f"{end}.time >= first.time - interval '1 hour'",
        *more,
    )
    return " AND ".join(conditions)


def _moved(statement: Statement, time_ns: int, microseconds: int) -> str:
    return statement.time(time_ns // 1000 + microseconds)
