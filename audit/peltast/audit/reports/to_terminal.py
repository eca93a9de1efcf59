"""A report for a terminal."""

from __future__ import annotations

import io
from datetime import datetime

import rich.table
from rich.console import Console
from rich.text import Text

from peltast.audit.reports.report import Cell, Column, Report, Table, Type, time_text, visible

__all__ = ["to_terminal"]


def to_terminal(report: Report, width: int = 120, *, colour: bool = False) -> bytes:
    """The tables of `report`, folded to `width` columns; none of what records hold moves the cursor or hides."""
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
        legacy_windows=False,
    )
    console.print(Text(report.title, style="bold"))
    console.print(Text(f"from {time_text(report.span.since)} until {time_text(report.span.until)}"))
    console.print(Text(f"rests on {report.rests_on}"))
    for note in report.notes:
        console.print(Text(note))
    for table in report.tables:
        console.print()
        console.print(_table(table))
    return out.getvalue().encode()


def _table(table: Table) -> rich.table.Table | Text:
    if not table.rows:
        return Text(f"{table.title}: none")
    columns = (rich.table.Column(each.name, overflow="fold", justify=_side(each)) for each in table.columns)
    shown = rich.table.Table(*columns, title=table.title, title_justify="left")
    for row in table.rows:
        shown.add_row(*(_shown(cell, column) for cell, column in zip(row, table.columns, strict=True)))
    return shown


def _side(column: Column) -> rich.console.JustifyMethod:
    return "right" if column.type is Type.NUMBER else "left"


def _shown(cell: Cell, column: Column) -> Text:
    if isinstance(cell, datetime):
        return Text(time_text(cell))
    return Text("" if cell is None else visible(str(cell), lines=column.type is Type.LINES))
