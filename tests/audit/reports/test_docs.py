"""docs/audit-reports.md has every report with its tables and their columns."""

from __future__ import annotations

import re
from pathlib import Path

import asyncpg
import pytest

from peltast.audit.reports.formats import Format
from peltast.audit.reports.kinds import KINDS
from peltast.audit.reports.make import MAX_ROWS, Kind, make_report
from peltast.authz.revision import Revision

from .conftest import SPAN

DOCUMENT = (Path(__file__).parents[3] / "docs" / "audit-reports.md").read_text()
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL))


def test_every_report_is_told_in_the_order_of_the_list() -> None:
    assert list(SECTIONS) == [*KINDS, "Signatures"]


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
async def test_every_table_is_told_with_its_columns(
    kind: Kind, auditor: asyncpg.Connection, configuration: Revision
) -> None:
    report = await make_report(kind, auditor, SPAN, configuration if kind.compares else None)
    [told] = re.findall(r"\| table \| columns \| rows \|\n.*\n((?:\|.*\n)+)", SECTIONS[kind.name])
    names = [re.findall(r"`(\w+)`", "|".join(line.split("|")[1:3])) for line in told.splitlines()]
    assert names == [[table.name, *(column.name for column in table.columns)] for table in report.tables]


def test_every_form_and_bound_is_told() -> None:
    _, _, forms = DOCUMENT.partition("| form |")
    assert re.findall(r"^\| `(\w+)` \|", forms.partition("\n\n")[0], re.MULTILINE) == list(Format)
    assert f"at most {MAX_ROWS:,} rows" in DOCUMENT
