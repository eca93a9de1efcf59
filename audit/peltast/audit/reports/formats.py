"""The forms that a report is written in."""

from __future__ import annotations

from enum import StrEnum

from peltast.audit.reports.report import Report
from peltast.audit.reports.to_csv import to_csv
from peltast.audit.reports.to_html import to_html
from peltast.audit.reports.to_json import to_json
from peltast.audit.reports.to_terminal import to_terminal

__all__ = ["Format", "write"]


class Format(StrEnum):
    """A form of a report."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"
    HTML = "html"


def write(report: Report, form: Format, table: str | None = None) -> bytes:
    """`report` in `form`; CSV and Parquet hold one table, which `table` names, or the first.

    Raises:
        LookupError: there is no such table.
    """
    chosen = report.table(table) if table is not None else report.tables[0]
    match form:
        case Format.TABLE:
            return to_terminal(report)
        case Format.CSV:
            return to_csv(chosen)
        case Format.JSON:
            return to_json(report)
        case Format.PARQUET:
            # pyarrow takes 0.1 s and 40 MB, which no other form and no other command should pay.
            from peltast.audit.reports.to_parquet import to_parquet

            return to_parquet(report, chosen)
        case Format.HTML:
            return to_html(report)
