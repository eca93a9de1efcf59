"""The forms of a report, from values."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from datetime import UTC, datetime, timedelta, timezone
from html.parser import HTMLParser
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peltast.audit.reports.formats import Format, write
from peltast.audit.reports.make import bars
from peltast.audit.reports.report import Bar, Cell, Chart, Column, Report, Span, Table, Type, time_text, visible
from peltast.audit.reports.to_csv import to_csv
from peltast.audit.reports.to_terminal import to_terminal

from .conftest import SPAN

# What Postgres text holds: Unicode without NUL and surrogates.
TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))
NUMBERS = st.integers(-(2**63), 2**63 - 1)
TIMES = st.timedeltas(timedelta(), timedelta(days=365 * 8000)).map(lambda age: datetime(1970, 1, 1, tzinfo=UTC) + age)
ROWS = st.lists(st.tuples(*(st.none() | cells for cells in (TEXT, TEXT, NUMBERS, TIMES))), max_size=5)
COLUMNS = (Column("text"), Column("lines", Type.LINES), Column("number", Type.NUMBER), Column("time", Type.TIME))


def table(*rows: tuple[Cell, ...]) -> Table:
    return Table.of("cells", "Cells", COLUMNS, rows, ordered=True)


def report(*rows: tuple[Cell, ...]) -> Report:
    return Report("some", "Some", SPAN, (table(*rows),))


def written(cell: Any) -> Any:
    return time_text(cell) if isinstance(cell, datetime) else cell


def read(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode(), newline="")))


# CSV ------------------------------------------------------------------------------------------------------------------


def test_csv_has_a_head_and_a_line_a_row() -> None:
    time = datetime(2026, 9, 21, 14, tzinfo=timezone(timedelta(hours=2)))
    assert to_csv(table(("spiffe://a/b", None, 3, time), ("", "", 0, None))) == (
        b"text,lines,number,time\r\nspiffe://a/b,,3,2026-09-21T12:00:00.000000Z\r\n,,0,\r\n"
    )


def test_csv_quotes_what_would_break_a_line() -> None:
    assert read(to_csv(table(('a,"b"\r\nc', None, 1, None))))[1] == ['a,"b"\r\nc', "", "1", ""]


@pytest.mark.parametrize(
    ("cell", "cells"),
    [
        pytest.param('=HYPERLINK("http://evil")', '\'=HYPERLINK("http://evil")', id="equals"),
        pytest.param("+1", "'+1", id="plus"),
        pytest.param("-1+cmd|' /C calc'!A0", "'-1+cmd|' /C calc'!A0", id="minus"),
        pytest.param("@SUM(A1)", "'@SUM(A1)", id="at"),
        pytest.param("\t=1", "'\t=1", id="tab"),
        pytest.param("\r=1", "'\r=1", id="carriage return"),
        pytest.param("\n=1", "'\n=1", id="line feed"),
        pytest.param("a=1", "a=1", id="a sign inside"),
        pytest.param("", "", id="empty"),
    ],
)
def test_no_cell_of_csv_is_a_formula(cell: str, cells: str) -> None:
    assert read(to_csv(table((cell, None, -5, None))))[1] == [cells, "", "-5", ""]


@given(ROWS)
def test_csv_reads_back_row_by_row_and_begins_no_formula(rows: list[tuple[Cell, ...]]) -> None:
    found = read(to_csv(table(*rows)))[1:]
    assert len(found) == len(rows)
    for given_row, read_row in zip(rows, found, strict=True):
        for given_cell, cell in zip(map(written, given_row), read_row, strict=True):
            plain = "" if given_cell is None else str(given_cell)
            assert cell in (plain, f"'{plain}")
            assert isinstance(given_cell, int) or not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))


# JSON and Parquet -----------------------------------------------------------------------------------------------------


@given(ROWS)
def test_json_reads_back(rows: list[tuple[Cell, ...]]) -> None:
    names = [column.name for column in COLUMNS]
    expected = [dict(zip(names, map(written, row), strict=True)) for row in rows]
    said = json.loads(write(report(*rows), Format.JSON))
    assert said["tables"]["cells"]["rows"] == expected
    assert said["tables"]["cells"]["columns"] == {"text": "text", "lines": "lines", "number": "number", "time": "time"}


@given(ROWS)
def test_parquet_reads_back(rows: list[tuple[Cell, ...]]) -> None:
    read_back = pq.read_table(io.BytesIO(write(report(*rows), Format.PARQUET)))
    assert [tuple(row.values()) for row in read_back.to_pylist()] == rows
    assert [str(field.type) for field in read_back.schema] == ["string", "string", "int64", "timestamp[us, tz=UTC]"]


# Pages and terminals --------------------------------------------------------------------------------------------------


class Cells(HTMLParser):
    """What stands in a page's cells, and the names of its elements and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.names: set[str] = set()
        self.within = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names |= {tag, *(name for name, _ in attrs)}
        self.within = tag == "bdi"
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self.within = False

    def handle_data(self, data: str) -> None:
        if self.within:
            self.cells[-1] += data


OWN = """
    html head meta title style body h1 h2 dl dt dd p div figure figcaption span svg rect text table thead tbody tr th td
    bdi lang charset http-equiv content name class viewbox role aria-label x y width height text-anchor id scope
"""


@given(ROWS)
def test_a_page_shows_every_cell_and_has_no_element_of_theirs(rows: list[tuple[Cell, ...]]) -> None:
    charts = (Chart("Bars", ("denied",), tuple(Bar(str(row[0]), (1,)) for row in rows)),)
    page = Cells()
    page.feed(write(Report("some", "Some", SPAN, (table(*rows),), charts, (str(rows),)), Format.HTML).decode())
    shown = [
        "" if cell is None else visible(str(written(cell)), lines=column.type is Type.LINES)
        for row in rows
        for cell, column in zip(row, COLUMNS, strict=True)
    ]
    assert page.cells == shown
    assert page.names <= set(OWN.split())


@given(ROWS)
def test_nothing_on_record_moves_a_cursor(rows: list[tuple[Cell, ...]]) -> None:
    shown = to_terminal(report(*rows)).decode()
    moving = [character for character in shown if unicodedata.category(character) in ("Cc", "Cf") and character != "\n"]
    assert moving in ([], ["\t"] * len(moving)), "tabs of several lines are kept"


@pytest.mark.parametrize(
    ("text", "lines", "shown"),
    [
        ("größe /a b", False, "größe /a b"),
        ("\x1b[31mred", False, r"\u{1b}[31mred"),
        ("a\u202egpj.exe", False, r"a\u{202e}gpj.exe"),
        ("zero\u200bwidth", False, r"zero\u{200b}width"),
        ("two\nlines\t.", False, r"two\u{a}lines\u{9}."),
        ("two\nlines\t.\r", True, "two\nlines\t.\\u{d}"),
        ("\U000e0001tag", False, r"\u{e0001}tag"),
    ],
)
def test_what_is_not_seen_is_shown(text: str, lines: bool, shown: str) -> None:
    assert visible(text, lines=lines) == shown


def test_the_longest_bars_are_shown_and_one_label_is_one_bar() -> None:
    counted = [(f"n{number:02}", (number,)) for number in range(20)] + [(None, (100,)), ("n01", (50,))]
    found = bars("Bars", ("denied",), counted).bars
    assert found[:3] == (Bar("(none)", (100,)), Bar("n01", (51,)), Bar("n19", (19,)))
    assert len(found) == 15


def test_rows_are_sorted_what_is_missing_first() -> None:
    rows = Table.of("a", "A", COLUMNS[:1], [("b",), (None,), ("B",), ("",)]).rows
    assert rows == ((None,), ("",), ("B",), ("b",))


def test_a_row_of_another_length_is_an_error() -> None:
    for form in (Format.TABLE, Format.JSON, Format.HTML):
        with pytest.raises(ValueError, match="zip"):
            write(report(("a", 1, 2)), form)


def test_a_table_that_is_not_there_is_an_error_that_names_those_that_are() -> None:
    with pytest.raises(LookupError, match="has no table 'x', but cells"):
        write(report(), Format.CSV, "x")


@pytest.mark.parametrize(
    ("since", "until", "says"),
    [
        (datetime(2026, 1, 1), datetime(2026, 1, 2, tzinfo=UTC), "zone"),  # noqa: DTZ001
        (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC), "before it begins"),
    ],
)
def test_a_range_has_zones_and_a_length(since: datetime, until: datetime, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Span(since, until)
