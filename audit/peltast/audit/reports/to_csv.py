"""A table of a report in CSV (RFC 4180)."""

from __future__ import annotations

import csv
import io
from datetime import datetime

from peltast.audit.csv_cells import neutralised
from peltast.audit.reports.report import Cell, Table, time_text

__all__ = ["to_csv"]


def to_csv(table: Table) -> bytes:
    """The rows of `table` behind its columns' names. Cells that a spreadsheet would take for formulas are made text."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(column.name for column in table.columns)
    writer.writerows([_written(cell) for cell in row] for row in table.rows)
    return out.getvalue().encode()


def _written(cell: Cell) -> str | int | None:
    return time_text(cell) if isinstance(cell, datetime) else neutralised(cell)
