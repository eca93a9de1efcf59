"""Making a report: its range, its checkpoint, its bounds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import asyncpg
import pytest

from peltast.audit.reports import make
from peltast.audit.reports.access import ACCESS
from peltast.audit.reports.kinds import KINDS
from peltast.audit.reports.make import Kind, TooLarge, make_report
from peltast.audit.reports.report import Span
from peltast.audit.reports.unused import UNUSED
from peltast.authz.revision import Revision

from .conftest import SINCE, SPAN, Log


@pytest.mark.parametrize(
    ("until", "size", "records", "beyond"),
    [(0.5, None, 1, 1), (1, 2, 1, 0), (62, 2, 4, 3), (1800, 28, 29, 2), (3600, 28, 29, 2), (4000, 31, 30, 0)],
)
async def test_a_report_rests_on_the_last_checkpoint_of_its_range(
    recorded: Log, auditor: asyncpg.Connection, until: float, size: int | None, records: int, beyond: int
) -> None:
    report = await make_report(ACCESS, auditor, Span(SINCE, SINCE + timedelta(seconds=until)))
    assert (report.checkpoint and report.checkpoint.size, report.records, report.beyond) == (size, records, beyond)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
async def test_more_rows_than_are_made_are_refused(
    kind: Kind,
    recorded: Log,
    auditor: asyncpg.Connection,
    configuration: Revision,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(make, "MAX_ROWS", 0)
    with pytest.raises(TooLarge, match="shorter range"):
        await make_report(kind, auditor, SPAN, configuration if kind.compares else None)


async def test_without_the_configuration_that_it_needs_there_is_no_report(auditor: asyncpg.Connection) -> None:
    with pytest.raises(LookupError, match="give its folder"):
        await make_report(UNUSED, auditor, SPAN)


async def test_the_rows_are_of_one_moment(recorded: Log, auditor: asyncpg.Connection) -> None:
    """What is committed while a report is made is not in half of it."""

    async def body(reader: make.Reader) -> make.Body:
        before = await reader.rows("SELECT count(*) FROM records WHERE time >= $1 AND time < $2")
        await recorded.put([{"second": 5, "kind": "heartbeat", "owner": "catalog"}])
        assert await reader.rows("SELECT count(*) FROM records WHERE time >= $1 AND time < $2") == before
        return make.Body(())

    first = await make_report(replace(ACCESS, body=body), auditor, SPAN)
    second = await make_report(replace(ACCESS, body=body), auditor, SPAN)
    assert (first.records, second.records) == (29, 30)


async def test_a_chart_over_time_has_every_request_in_its_slot(recorded: Log, auditor: asyncpg.Connection) -> None:
    chart = (await make_report(ACCESS, auditor, SPAN)).charts[0]
    counted = {bar.label: bar.parts for bar in chart.bars if any(bar.parts)}
    assert len(chart.bars) == 48
    assert counted == {
        "2026-09-21 12:00:00": (2, 0),
        "2026-09-21 12:01:15": (40, 0),
        "2026-09-21 12:02:30": (0, 1),
        "2026-09-21 12:05:00": (0, 2),
        "2026-09-21 12:06:15": (1, 0),
        "2026-09-21 12:07:30": (1, 0),
        "2026-09-21 12:10:00": (2, 0),
        "2026-09-21 12:11:15": (0, 3),
        "2026-09-21 12:12:30": (0, 1),
        "2026-09-21 12:15:00": (0, 1),
    }


@pytest.mark.parametrize("length", [timedelta(microseconds=1), timedelta(days=36500), timedelta(seconds=1.000007)])
async def test_a_range_may_be_of_any_length(recorded: Log, auditor: asyncpg.Connection, length: timedelta) -> None:
    until = SINCE + timedelta(seconds=1)
    for span in (Span(until, until + length), Span(until - min(length, timedelta(days=18000)), until)):
        chart = (await make_report(ACCESS, auditor, span)).charts[0]
        rows = [row for row in recorded.records if span.since <= row["time"] < span.until and row["kind"] != "outbound"]
        assert bool(sum(sum(bar.parts) for bar in chart.bars)) == any(row["kind"] == "decision" for row in rows)
        assert 1 <= len(chart.bars) <= 49


@pytest.fixture
async def days(owner: asyncpg.Connection) -> AsyncIterator[Span]:
    """Partitions of three days; the range is of the second."""
    for day in (20, 21, 22):
        bounds = f"FROM ('2027-09-{day}Z') TO ('2027-09-{day + 1}Z')"
        await owner.execute(f"CREATE TABLE day_{day} PARTITION OF records FOR VALUES {bounds}")
    noon = SINCE.replace(year=2027)
    yield Span(noon, noon + timedelta(hours=1))
    await owner.execute("DROP TABLE day_20, day_21, day_22")


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
async def test_other_days_are_not_read(
    kind: Kind, days: Span, auditor: asyncpg.Connection, configuration: Revision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each query names the range to PostgreSQL, which leaves out the partitions of other days."""
    asked: list[tuple[str, tuple[object, ...]]] = []
    rows = make.Reader.rows

    async def noted(self: make.Reader, query: str, *more: object) -> list[tuple[object, ...]]:
        asked.append((query, more))
        return await rows(self, query, *more)

    monkeypatch.setattr(make.Reader, "rows", noted)
    await make_report(kind, auditor, days, configuration if kind.compares else None)
    of_records = [(query, more) for query, more in asked if "records" in query or "counted_requests" in query]
    assert of_records
    for query, more in of_records:
        plan = "\n".join(row[0] for row in await auditor.fetch(f"EXPLAIN {query}", days.since, days.until, *more))
        assert [f"day_{day}" in plan for day in (20, 21, 22)] == [False, True, False], plan
