"""A report in JSON."""

from __future__ import annotations

import json
from datetime import datetime

from peltast.audit.reports.report import Cell, Report, Table, time_text

__all__ = ["to_json"]


def to_json(report: Report) -> bytes:
    """All of `report` but its charts, which show what the tables say. Rows are objects."""
    checkpoint = report.checkpoint
    document = {
        "report": report.name,
        "title": report.title,
        "since": time_text(report.span.since),
        "until": time_text(report.span.until),
        "records": report.records,
        "records_after_checkpoint": report.beyond,
        "checkpoint": checkpoint
        and {"size": checkpoint.size, "root": checkpoint.root.hex(), "time": time_text(checkpoint.time)},
        "notes": list(report.notes),
        "tables": {table.name: _table(table) for table in report.tables},
    }
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _table(table: Table) -> dict[str, object]:
    names = [column.name for column in table.columns]
    rows = [dict(zip(names, map(_value, row), strict=True)) for row in table.rows]
    return {"title": table.title, "columns": {column.name: column.type for column in table.columns}, "rows": rows}


def _value(cell: Cell) -> str | int | None:
    return time_text(cell) if isinstance(cell, datetime) else cell
