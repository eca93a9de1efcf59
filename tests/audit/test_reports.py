from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peltast.audit.reports.report import Report, to_csv, to_json

CELLS = st.text() | st.integers() | st.none()


def report(*rows: tuple[str | int | None, ...]) -> Report:
    return Report("A title", ("source", "requests"), rows)


def read(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


def test_csv_has_a_head_and_a_line_a_row() -> None:
    assert to_csv(report(("spiffe://a/b", 3), (None, 0))) == "source,requests\r\nspiffe://a/b,3\r\n,0\r\n"


def test_csv_quotes_what_would_break_a_line() -> None:
    assert read(to_csv(report(('a,"b"\r\nc', 1)))) == [["source", "requests"], ['a,"b"\r\nc', "1"]]


@pytest.mark.parametrize(
    ("cell", "written"),
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
        pytest.param(-5, "-5", id="a number"),
    ],
)
def test_no_cell_of_csv_is_a_formula(cell: str | int, written: str) -> None:
    assert read(to_csv(report((cell, 1))))[1] == [written, "1"]


@given(st.lists(st.tuples(CELLS, CELLS)))
def test_csv_reads_back_row_by_row_and_begins_no_formula(rows: list[tuple[str | int | None, ...]]) -> None:
    found = read(to_csv(report(*rows)))[1:]
    assert len(found) == len(rows)
    for given_row, read_row in zip(rows, found, strict=True):
        for given_cell, cell in zip(given_row, read_row, strict=True):
            plain = "" if given_cell is None else str(given_cell)
            assert cell in (plain, f"'{plain}")
            assert isinstance(given_cell, int) or not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))


def test_json_is_a_title_and_objects() -> None:
    text = to_json(report(("größe", 3), (None, 0)))
    assert json.loads(text) == {
        "title": "A title",
        "rows": [{"source": "größe", "requests": 3}, {"source": None, "requests": 0}],
    }
    assert "größe" in text
    assert text.endswith("}\n")


@given(st.lists(st.tuples(CELLS, CELLS)))
def test_json_reads_back(rows: list[tuple[str | int | None, ...]]) -> None:
    expected = [dict(zip(("source", "requests"), row, strict=True)) for row in rows]
    assert json.loads(to_json(report(*rows)))["rows"] == expected


def test_a_row_of_another_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        to_json(report(("a", 1, 2)))
