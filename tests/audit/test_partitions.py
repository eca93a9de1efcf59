"""A partition a day, made by the collector, whatever lies in the default one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs
from support.starts import take_in
from support.store import partitions

from peltast.audit.chain import verify_store
from peltast.audit.store.embedded import EmbeddedPostgres
from peltast.audit.store.migrate import COLLECTOR_ROLE
from peltast.audit.store.partitions import ensure_partitions, keep_partitions

Connection = asyncpg.Connection

DAY_NS = 86_400 * 10**9
ROWS = "SELECT tableoid::regclass::text AS partition, count(*) FROM records GROUP BY 1"


def today() -> date:
    return datetime.now(UTC).date()


def name(day: date) -> str:
    return f"records_{day:%Y%m%d}"


async def rows(owner: Connection) -> dict[str, int]:
    return {each["partition"]: each["count"] for each in await owner.fetch(ROWS)}


async def test_the_collector_makes_partitions_from_two_days_ago_to_a_week_ahead(
    unpartitioned: Connection, collector: Connection
) -> None:
    assert await ensure_partitions(collector) == 10
    assert await partitions(unpartitioned) == [name(today() + timedelta(days)) for days in range(-2, 8)]
    assert await ensure_partitions(collector) == 0


@pytest.mark.parametrize(("hours", "day"), [(0, 0), (24, 0), (24, -1), (0, 7)])
async def test_a_record_lies_in_the_partition_of_its_day_in_utc(
    unpartitioned: Connection, collector: Connection, spool: Any, principal: str, hours: int, day: int
) -> None:
    """The first microsecond of a day, and the last."""
    await ensure_partitions(collector)
    await collector.execute("SET timezone = 'Pacific/Kiritimati'")
    midnight = datetime.combine(today() + timedelta(day), datetime.min.time(), UTC)
    time_ns = int((midnight + timedelta(hours=hours)).timestamp()) * 10**9 - (1000 if hours else 0)
    spool.writer.append("decision", time_ns, {"path": "/"})
    await take_in(collector, spool.id, principal, spool.frames())
    assert (await rows(unpartitioned))[name(today() + timedelta(day))] == 1


@pytest.mark.parametrize("days", [-30, -3, 8, 4000])
async def test_a_clock_that_is_far_off_writes_to_the_default_partition(
    unpartitioned: Connection, collector: Connection, spool: Any, principal: str, days: int
) -> None:
    await ensure_partitions(collector)
    spool.clock = time.time_ns() + days * DAY_NS
    spool.append(path="/")
    await take_in(collector, spool.id, principal, spool.frames())
    assert (await rows(unpartitioned))["records_default"] >= 1


async def test_records_that_came_before_their_partition_move_to_it_and_stay_what_they_are(
    unpartitioned: Connection, collector: Connection, spool: Any, principal: str
) -> None:
    spool.clock = time.time_ns()
    for number in range(5):
        spool.append(path=f"/{number}")
    spool.clock += 400 * DAY_NS
    spool.append(path="/far")
    await take_in(collector, spool.id, principal, spool.frames())
    before = await unpartitioned.fetch("SELECT * FROM records ORDER BY leaf")
    assert await rows(unpartitioned) == {"records_default": len(before)}
    assert await ensure_partitions(collector) == 10
    assert (await rows(unpartitioned))[name(today())] == 5
    assert await unpartitioned.fetch("SELECT * FROM records ORDER BY leaf") == before
    assert (await verify_store(unpartitioned)).sound


async def test_records_are_stored_while_partitions_are_made(
    postgres: EmbeddedPostgres, unpartitioned: Connection, collector: Connection, spool: Any, principal: str
) -> None:
    """Two collectors at once, one of which stores."""
    others = [await asyncpg.connect(postgres.url(COLLECTOR_ROLE)) for _ in range(3)]
    spool.clock = time.time_ns()
    try:
        making = [asyncio.create_task(ensure_partitions(other)) for other in others]
        for _ in range(20):
            spool.append(path="/")
            await take_in(collector, spool.id, principal, spool.frames())
        assert sorted(await asyncio.gather(*making)) == [0, 0, 10]
    finally:
        for other in others:
            await other.close()
    assert (await verify_store(unpartitioned)).records == 21


async def test_a_partition_has_the_indexes_of_all(unpartitioned: Connection, collector: Connection) -> None:
    await ensure_partitions(collector)
    unattached = await unpartitioned.fetch(
        "SELECT indexrelid::regclass FROM pg_index WHERE indrelid = $1::text::regclass AND NOT EXISTS "
        "(SELECT FROM pg_inherits WHERE inhrelid = indexrelid)",
        name(today()),
    )
    assert unattached == []


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - logs set no Event
            await asyncio.sleep(0.01)


@pytest.fixture
async def pool(postgres: EmbeddedPostgres) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with asyncpg.create_pool(postgres.url(COLLECTOR_ROLE), min_size=0) as pool:
        yield pool


async def test_a_collector_goes_on_making_partitions_after_a_failure(
    unpartitioned: Connection, pool: asyncpg.Pool[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peltast.audit.store.partitions.RETRY_SECONDS", 0.01)
    await unpartitioned.execute("REVOKE EXECUTE ON FUNCTION ensure_partitions FROM peltast_collector")
    keeping = asyncio.create_task(keep_partitions(pool))
    try:
        with capture_logs() as logs:
            await until(lambda: any(each["event"] == "partitions not made" for each in logs))
        assert await partitions(unpartitioned) == []
        await unpartitioned.execute("GRANT EXECUTE ON FUNCTION ensure_partitions TO peltast_collector")
        with capture_logs() as logs:
            await until(lambda: any(each["event"] == "partitions made" for each in logs))
        assert len(await partitions(unpartitioned)) == 10
    finally:
        keeping.cancel()
