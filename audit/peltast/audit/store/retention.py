"""Dropping days whose time is over, but none that is held or that the signed tree does not vouch for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncpg  # not when run: every command's options import this file

__all__ = ["SHORTEST_RETENTION_DAYS", "Day", "retain"]

SHORTEST_RETENTION_DAYS = 2
"""Records come late by as many days: partitions are made for them."""

_LOCK_SECONDS = 10

_DUE = """
SELECT to_date(right(relname, 8), 'YYYYMMDD') AS day
FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
WHERE inhparent = 'records'::regclass AND relname ~ '^records_[0-9]{8}$'
  AND to_date(right(relname, 8), 'YYYYMMDD') < (now() AT TIME ZONE 'UTC')::date - $1::int
ORDER BY day
"""

_FOUND = """
SELECT found.*, CASE
    WHEN EXISTS (SELECT FROM legal_holds WHERE $1 BETWEEN since AND until) THEN
        'held: ' || (SELECT string_agg(name, ', ' ORDER BY name) FROM legal_holds WHERE $1 BETWEEN since AND until)
    WHEN last_leaf >= coalesce((SELECT max(size) FROM checkpoints), 0) THEN 'no checkpoint covers it yet'
    WHEN EXISTS (
        SELECT FROM (SELECT DISTINCT leaf / 256 AS number FROM {table}) needed
        WHERE NOT EXISTS (SELECT FROM tiles WHERE level = 0 AND tiles.number = needed.number)
    ) THEN 'its leaves are not all in whole tiles yet'
END AS kept
FROM (SELECT count(*) AS records, min(leaf) AS first_leaf, max(leaf) AS last_leaf FROM {table}) found
"""

_NOTE_RECORDS = """
INSERT INTO dropped_records (spool, since, until, leaf, link)
SELECT spool, min(sequence), max(sequence), (array_agg(leaf ORDER BY sequence DESC))[1],
    (array_agg(link ORDER BY sequence DESC))[1]
FROM (SELECT *, sequence - row_number() OVER (PARTITION BY spool ORDER BY sequence) AS run FROM {table}) numbered
GROUP BY spool, run
"""


@dataclass(frozen=True)
class Day:
    """A day whose time is over; `kept` says why it is not dropped."""

    day: date
    records: int
    first_leaf: int | None
    last_leaf: int | None
    kept: str | None


async def retain(connection: asyncpg.Connection[Any], days: int, *, dry_run: bool = False) -> list[Day]:
    """Drops every whole day (UTC) that lies more than `days` days back, and gives all of these, dropped or kept.

    A day stays while a legal hold covers it, while no checkpoint covers the newest of its records, and while one of
    them is in no whole tile: so it can be shown afterwards what its records' hashes were. What was dropped is written
    down. Records in the default partition stay: when they were made only a clock says that was far off.

    The connection is the store's owner's.
    """
    if days < SHORTEST_RETENTION_DAYS:
        raise ValueError(f"{days} days: at least {SHORTEST_RETENTION_DAYS} are kept, for records that come late")
    due = [row["day"] for row in await connection.fetch(_DUE, days)]
    return [await _drop(connection, day, dry_run=dry_run) for day in due]


async def _drop(connection: asyncpg.Connection[Any], day: date, *, dry_run: bool) -> Day:
    table = f"records_{day:%Y%m%d}"
    async with connection.transaction():
        if not dry_run:
            # Neither a record nor a hold comes between looking and dropping. Who waits longer tries again tomorrow.
            await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'")
            await connection.execute(f"LOCK TABLE {table}, legal_holds IN SHARE MODE")
        row = await connection.fetchrow(_FOUND.format(table=table), day)
        assert row is not None, "an aggregate has a row"
        found = Day(day, row["records"], row["first_leaf"], row["last_leaf"], row["kept"])
        if found.kept is None and not dry_run:
            await connection.execute(_NOTE_RECORDS.format(table=table))
            await connection.execute(
                "INSERT INTO dropped_partitions (day, records, first_leaf, last_leaf) VALUES ($1, $2, $3, $4)",
                *(day, found.records, found.first_leaf, found.last_leaf),
            )
            await connection.execute(f"DROP TABLE {table}")
    return found
