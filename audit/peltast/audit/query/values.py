"""Rows as programs and people read them."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import asyncpg

from peltast.audit.csv_cells import neutralised

__all__ = ["as_object", "csv_line", "json_text", "printable", "shown", "time_text"]

_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
"""What moves a terminal's cursor, starts its commands, hides, or turns the direction of text."""


def as_object(row: asyncpg.Record, columns: Iterable[str]) -> dict[str, Any]:
    """The row by column. What is absent is left out, as in the record."""
    return {name: shown(name, row[name]) for name in columns if row[name] is not None}


def shown(name: str, value: Any) -> Any:
    """A value of column `name` as JSON has it."""
    if name == "time" and value is not None:
        return time_text(int(value))
    return value.hex() if isinstance(value, bytes) else value


def time_text(time_ns: int) -> str:
    """RFC 3339 in UTC, to the nanosecond."""
    seconds, nanoseconds = divmod(time_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}Z"


def json_text(value: object) -> str:
    """JSON on one line, whose text a terminal shows as it is and does nothing with."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _UNPRINTABLE.sub(_json_escape, text)


def _json_escape(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]


def printable(text: str) -> str:
    r"""Text for a terminal: control characters are written as `\xNN` or `\uNNNN`."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def csv_line(cells: Iterable[Any]) -> str:
    """A line of CSV (RFC 4180). Cells that a spreadsheet would take for formulas are made text."""
    out = io.StringIO()
    csv.writer(out).writerow(neutralised(_cell(cell)) for cell in cells)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(value) if isinstance(value, list) else value
