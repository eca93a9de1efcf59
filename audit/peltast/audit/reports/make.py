"""Making a report: one consistent look at the store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg

from peltast.audit.reports.report import Bar, Cell, Chart, Checkpoint, Column, Report, Span, Table
from peltast.authz.revision import Revision

__all__ = ["Body", "Kind", "Reader", "TooLarge", "bars", "make_report"]

MAX_ROWS = 100_000
"""Of one query: some cells are what strangers wrote, who must not fill a machine's memory."""

MAX_BARS = 15
COLUMNS_OVER_TIME = 48

_CHECKPOINT = "SELECT size, root, time FROM checkpoints WHERE time <= $1 ORDER BY size DESC LIMIT 1"

_RECORDS = """
SELECT count(*), count(*) FILTER (WHERE leaf >= $3) FROM records WHERE time >= $1 AND time < $2
"""


class TooLarge(ValueError):
    """A report would have more rows than are made."""


@dataclass(frozen=True)
class Body:
    """What is particular to a report."""

    tables: tuple[Table, ...]
    charts: tuple[Chart, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reader:
    """The records of a range, and the configuration that they are compared with."""

    connection: asyncpg.Connection[Any]
    span: Span
    configuration: Revision | None = None

    @property
    def revision(self) -> Revision:
        """The configuration.

        Raises:
            LookupError: none was given.
        """
        if self.configuration is None:
            raise LookupError("this report compares with a configuration: give its folder")
        return self.configuration

    async def rows(self, query: str, *more: object) -> list[tuple[Any, ...]]:
        """What `query` finds, of which $1 and $2 are the range, and `more` from $3 on.

        Raises:
            TooLarge: see there.
        """
        cursor = await self.connection.cursor(query, self.span.since, self.span.until, *more)
        found = await cursor.fetch(MAX_ROWS + 1)
        if len(found) > MAX_ROWS:
            raise TooLarge(f"the report has over {MAX_ROWS} rows: choose a shorter range")
        return [tuple(row.values()) for row in found]

    async def table(
        self, name: str, title: str, columns: Iterable[Column], query: str, *more: object, ordered: bool = False
    ) -> Table:
        """The table of what `query` finds."""
        return Table.of(name, title, columns, await self.rows(query, *more), ordered=ordered)

    async def over_time(self, title: str, series: tuple[str, ...], query: str) -> Chart:
        """A chart over the range of what `query` counts: rows of a time slot's number and a number for each series.

        $1 and $2 are the range, $3 is a slot's length.
        """
        whole = self.span.until - self.span.since
        slot = max(whole / COLUMNS_OVER_TIME, timedelta(milliseconds=1))
        counted = {number: parts for number, *parts in await self.rows(query, slot)}
        slots = -(-whole // slot)
        nothing = [0] * len(series)
        labels = ((self.span.since + slot * number).strftime("%Y-%m-%d %H:%M:%S") for number in range(slots))
        found = (Bar(label, tuple(counted.get(number, nothing))) for number, label in enumerate(labels))
        return Chart(title, series, tuple(found), over_time=True)


@dataclass(frozen=True)
class Kind:
    """A kind of report."""

    name: str
    title: str
    about: str
    body: Callable[[Reader], Awaitable[Body]]
    compares: bool = False
    """Whether it needs a configuration to compare with."""


async def make_report(
    kind: Kind, connection: asyncpg.Connection[Any], span: Span, configuration: Revision | None = None
) -> Report:
    """The report of `kind` over `span`: of one moment of the store, whatever is committed meanwhile.

    Raises:
        TooLarge, LookupError: see :class:`Reader`.
    """
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        reader = Reader(connection, span, configuration)
        body = await kind.body(reader)
        checkpoint = await _checkpoint(reader)
        [(records, beyond)] = await reader.rows(_RECORDS, checkpoint.size if checkpoint else 0)
    return Report(kind.name, kind.title, span, body.tables, body.charts, body.notes, checkpoint, records, beyond)


async def _checkpoint(reader: Reader) -> Checkpoint | None:
    row = await reader.connection.fetchrow(_CHECKPOINT, reader.span.until)
    return Checkpoint(row["size"], row["root"], row["time"]) if row is not None else None


def bars(title: str, series: tuple[str, ...], counted: Iterable[tuple[Cell, tuple[int, ...]]]) -> Chart:
    """A chart of the longest bars; what has one label is one bar."""
    sums: dict[str, tuple[int, ...]] = {}
    for label, parts in counted:
        name = "(none)" if label is None else str(label)
        before = sums.get(name, (0,) * len(series))
        sums[name] = tuple(map(sum, zip(before, parts, strict=True)))
    longest = sorted(sums.items(), key=lambda item: (-sum(item[1]), item[0]))[:MAX_BARS]
    return Chart(title, series, tuple(Bar(name, parts) for name, parts in longest))
