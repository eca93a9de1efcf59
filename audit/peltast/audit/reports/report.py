"""A report: columns and rows, written out in the forms that people and programs read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Report", "to_csv", "to_json"]

Cell = str | int | None


@dataclass(frozen=True)
class Report:
    """A table with a title. The same range of records gives the same report, to the byte."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def to_csv(report: Report) -> str:
    """The report in CSV (RFC 4180). Cells that a spreadsheet would take for formulas are made text."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(report.columns)
    writer.writerows([_as_text(cell) for cell in row] for row in report.rows)
    return out.getvalue()


def _as_text(cell: Cell) -> Cell:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else cell


def to_json(report: Report) -> str:
    """The report in JSON: its title, and a list of objects."""
    rows: Sequence[dict[str, Cell]] = [dict(zip(report.columns, row, strict=True)) for row in report.rows]
    return json.dumps({"title": report.title, "rows": rows}, indent=2, ensure_ascii=False) + "\n"
