"""Rows in the forms that are asked for, one by one: none of them needs all rows at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

import asyncpg
from rich.cells import cell_len

from peltast.audit.query.values import as_object, csv_line, json_text, printable, shown

__all__ = ["Form", "Writer", "writer", "written"]


class Form(StrEnum):
    """How rows are written."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"


class Writer:
    """JSON lines: an object a row, which has what is not absent."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns

    def head(self, first: Sequence[asyncpg.Record]) -> str:
        """What comes before the rows, the first of which are these."""
        return ""

    def line(self, row: asyncpg.Record) -> str:
        """A row."""
        return json_text(as_object(row, self._columns)) + "\n"

    def foot(self) -> str:
        """What comes after the rows."""
        return ""


class _Json(Writer):
    """One list of such objects."""

    _before = "[\n"

    def line(self, row: asyncpg.Record) -> str:
        before, self._before = self._before, ",\n"
        return before + super().line(row).rstrip("\n")

    def foot(self) -> str:
        return "[]\n" if self._before == "[\n" else "\n]\n"


class _Csv(Writer):
    """CSV with a head, to the byte as it is on record, but for formulas."""

    def head(self, first: Sequence[asyncpg.Record]) -> str:
        return csv_line(self._columns)

    def line(self, row: asyncpg.Record) -> str:
        return csv_line(shown(name, row[name]) for name in self._columns)


class _CsvOnTerminal(_Csv):
    """The same for eyes: nothing in it does anything to a terminal."""

    def head(self, first: Sequence[asyncpg.Record]) -> str:
        return ",".join(self._columns) + "\n"

    def line(self, row: asyncpg.Record) -> str:
        return printable(super().line(row).removesuffix("\r\n")) + "\n"


class _Table(Writer):
    """Columns as wide as the first rows need; wider where a later one does."""

    def head(self, first: Sequence[asyncpg.Record]) -> str:
        head = [name.upper() for name in self._columns]
        self._widths = [0] * len(head)
        for cells in (head, *map(self._cells, first)):
            self._widen(cells)
        return self._padded(head)

    def line(self, row: asyncpg.Record) -> str:
        cells = self._cells(row)
        self._widen(cells)
        return self._padded(cells)

    def _cells(self, row: asyncpg.Record) -> list[str]:
        return [_cell(shown(name, row[name])) for name in self._columns]

    def _widen(self, cells: list[str]) -> None:
        self._widths = [max(width, cell_len(cell)) for width, cell in zip(self._widths, cells, strict=True)]

    def _padded(self, cells: list[str]) -> str:
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, self._widths, strict=True))
        return "  ".join(padded).rstrip() + "\n"


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    return printable(json_text(value) if isinstance(value, bool | list) else str(value))


_WRITERS: Mapping[Form, type[Writer]] = {Form.TABLE: _Table, Form.JSON: _Json, Form.JSONL: Writer, Form.CSV: _Csv}


def writer(form: Form, columns: Sequence[str], *, terminal: bool = False) -> Writer:
    """What writes rows of `columns` in `form`, to a terminal or to whatever keeps or reads them."""
    return _CsvOnTerminal(columns) if terminal and form is Form.CSV else _WRITERS[form](columns)


async def written(to: Writer, rows: AsyncGenerator[asyncpg.Record], *, measured: int) -> AsyncIterator[str]:
    """The text of all rows. As many as are `measured` are waited for, to make a table wide enough for them."""
    first: list[asyncpg.Record] = []
    while len(first) < measured and (row := await anext(rows, None)) is not None:
        first.append(row)
    yield to.head(first)
    for row in first:
        yield to.line(row)
    async for row in rows:
        yield to.line(row)
    yield to.foot()
