"""Every report in every form, from fixed records, against what is expected.

After a change that is meant, `PELTAST_WRITE_GOLDEN=1 pytest tests/audit/reports/test_golden.py` writes them anew. Such
a run fails, so that nobody takes it for a check.
"""

from __future__ import annotations

import io
import json
import os
from datetime import datetime
from pathlib import Path

import asyncpg
import pyarrow.parquet as pq
import pytest

from peltast.audit.reports.formats import Format, write
from peltast.audit.reports.kinds import KINDS
from peltast.audit.reports.make import Kind, make_report
from peltast.audit.reports.report import Report, time_text
from peltast.authz.revision import Revision

from .conftest import GOLDEN, SPAN, Log

WRITE = "PELTAST_WRITE_GOLDEN" in os.environ
SUFFIXES = {Format.TABLE: "txt", Format.CSV: "csv", Format.JSON: "json", Format.HTML: "html"}


async def made(kind: Kind, auditor: asyncpg.Connection, configuration: Revision) -> Report:
    return await make_report(kind, auditor, SPAN, configuration if kind.compares else None)


def compare(file: Path, content: bytes) -> None:
    if WRITE:
        file.write_bytes(content)
        pytest.fail(f"{file.name} was written")
    assert content == file.read_bytes()


@pytest.mark.parametrize("form", SUFFIXES)
@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
async def test_a_report_is_as_expected_to_the_byte(
    kind: Kind, form: Format, recorded: Log, auditor: asyncpg.Connection, configuration: Revision
) -> None:
    report = await made(kind, auditor, configuration)
    compare(GOLDEN / f"{kind.name}.{SUFFIXES[form]}", write(report, form))


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
async def test_parquet_holds_what_json_holds(
    kind: Kind, recorded: Log, auditor: asyncpg.Connection, configuration: Revision
) -> None:
    report = await made(kind, auditor, configuration)
    said = json.loads(write(report, Format.JSON))
    for table in report.tables:
        read = pq.read_table(io.BytesIO(write(report, Format.PARQUET, table.name)))
        rows = [
            {name: time_text(cell) if isinstance(cell, datetime) else cell for name, cell in row.items()}
            for row in read.to_pylist()
        ]
        assert rows == said["tables"][table.name]["rows"]
        metadata = {name.decode(): value.decode() for name, value in read.schema.metadata.items()}
        assert (metadata["peltast.report"], metadata["peltast.table"]) == (kind.name, table.name)
        assert metadata["peltast.rests_on"] == report.rests_on


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
async def test_the_same_range_gives_the_same_bytes(
    kind: Kind, recorded: Log, auditor: asyncpg.Connection, configuration: Revision
) -> None:
    first, second = [await made(kind, auditor, configuration) for _ in range(2)]
    for form in Format:
        assert write(first, form) == write(second, form)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
async def test_an_empty_range_is_a_report_in_every_form(
    kind: Kind, owner: asyncpg.Connection, auditor: asyncpg.Connection, configuration: Revision
) -> None:
    report = await made(kind, auditor, configuration)
    assert report.records == 0
    assert report.checkpoint is None
    assert "no checkpoint" in write(report, Format.TABLE).decode()
    assert "no checkpoint" in write(report, Format.HTML).decode()
    assert json.loads(write(report, Format.JSON))["checkpoint"] is None
    if not kind.compares and kind.name != "controls":
        assert all(table.rows == () for table in report.tables)
        assert write(report, Format.CSV).count(b"\r\n") == 1
    assert pq.read_table(io.BytesIO(write(report, Format.PARQUET))).num_rows == len(report.tables[0].rows)
