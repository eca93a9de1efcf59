"""A report: tables and charts over a range of records. Pure values: the same range gives the same report."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

__all__ = ["Bar", "Cell", "Chart", "Checkpoint", "Column", "Report", "Span", "Table", "Type", "time_text", "visible"]

Cell = str | int | datetime | None


class Type(StrEnum):
    """What a column's cells are, where they are not null."""

    TEXT = "text"
    LINES = "lines"
    """Text of several lines."""
    NUMBER = "number"
    TIME = "time"


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    type: Type = Type.TEXT


@dataclass(frozen=True)
class Table:
    """A table of a report. `name` is for programs, `title` for people."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @classmethod
    def of(
        cls,
        name: str,
        title: str,
        columns: Iterable[Column],
        rows: Iterable[tuple[Cell, ...]],
        *,
        ordered: bool = False,
    ) -> Table:
        """The table of `rows`, sorted by their cells from left to right unless they are `ordered` already."""
        return cls(name, title, tuple(columns), tuple(rows if ordered else sorted(rows, key=_order)))

    def column(self, name: str) -> list[Cell]:
        """The cells of one column."""
        place = [column.name for column in self.columns].index(name)
        return [row[place] for row in self.rows]


def _order(row: tuple[Cell, ...]) -> tuple[object, ...]:
    """What is missing comes first. No database's collation has a say in it."""
    return tuple((cell is not None, cell) for cell in row)


@dataclass(frozen=True)
class Bar:
    """A bar of a chart: a number for each of the chart's series."""

    label: str
    parts: tuple[int, ...]


@dataclass(frozen=True)
class Chart:
    """Bars below each other; `over_time`, beside each other."""

    title: str
    series: tuple[str, ...]
    bars: tuple[Bar, ...]
    over_time: bool = False


@dataclass(frozen=True)
class Span:
    """The time that a report is about: from `since` on, before `until`."""

    since: datetime
    until: datetime

    def __post_init__(self) -> None:
        if self.since.tzinfo is None or self.until.tzinfo is None:
            raise ValueError("times of a report have a zone")
        if self.since >= self.until:
            raise ValueError(f"the range ends at {time_text(self.until)}, before it begins: {time_text(self.since)}")


@dataclass(frozen=True)
class Checkpoint:
    """The signed state of the log's tree (RFC 9162) that a report rests on."""

    size: int
    root: bytes
    time: datetime


@dataclass(frozen=True)
class Report:
    """What is told. `records` lie in the range, `beyond` of them behind the checkpoint's tree."""

    name: str
    title: str
    span: Span
    tables: tuple[Table, ...]
    charts: tuple[Chart, ...] = ()
    notes: tuple[str, ...] = ()
    """What the tables were made from, and how they are to be read."""
    checkpoint: Checkpoint | None = None
    records: int = 0
    beyond: int = 0

    def table(self, name: str) -> Table:
        """One of the tables.

        Raises:
            LookupError: no table is called so.
        """
        for table in self.tables:
            if table.name == name:
                return table
        known = ", ".join(table.name for table in self.tables)
        raise LookupError(f"the report {self.name} has no table {name!r}, but {known}")

    @property
    def rests_on(self) -> str:
        """The checkpoint in words."""
        if self.checkpoint is None:
            return f"no checkpoint: none was signed by the end of the range; {self.records} records"
        root = self.checkpoint.root.hex()
        told = f"checkpoint of tree size {self.checkpoint.size}, root {root}, {time_text(self.checkpoint.time)}"
        return f"{told}; {self.records} records, {self.beyond} of them after it"


def time_text(time: datetime) -> str:
    """A time as RFC 3339 in UTC, to the microsecond."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def visible(text: str, *, lines: bool = False) -> str:
    r"""`text` for eyes: what moves a cursor, turns the direction of writing or is not seen becomes `\u{…}`.

    With `lines`, line feeds and tabs stay.
    """
    if text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    unseen = (character not in kept and unicodedata.category(character) in _UNSEEN for character in text)
    return "".join(
        f"\\u{{{ord(character):x}}}" if hide else character for character, hide in zip(text, unseen, strict=True)
    )
