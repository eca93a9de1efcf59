"""Reading the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import asyncpg

__all__ = ["follow", "requests"]

Connection: TypeAlias = "asyncpg.Connection[Any]"

POLL_SECONDS = 0.1


async def requests(connection: Connection, destination: str | None = None) -> list[asyncpg.Record]:
    """Every request and refused connection in order of time, of one destination principal or of all."""
    return await connection.fetch(
        "SELECT * FROM requests WHERE $1::text IS NULL OR destination_principal = $1 ORDER BY time, spool, sequence",
        destination,
    )


async def follow(connection: Connection) -> AsyncIterator[asyncpg.Record]:
    """Decisions, refusals and acts as they are committed, from now on.

    Followed spool by spool: the order of commits is sure within a spool only.
    """
    seen = {row["spool"]: row["sequence"] for row in await connection.fetch("SELECT spool, sequence FROM spools")}
    while True:
        for spool in await connection.fetch("SELECT spool, sequence FROM spools ORDER BY last_seen"):
            before = seen.get(spool["spool"], 0)
            if spool["sequence"] > before:
                seen[spool["spool"]] = spool["sequence"]
                for row in await _fresh(connection, spool["spool"], before, spool["sequence"]):
                    yield row
        await asyncio.sleep(POLL_SECONDS)


async def _fresh(connection: Connection, spool: bytes, after: int, until: int) -> list[asyncpg.Record]:
    return await connection.fetch(
        "SELECT * FROM records WHERE spool = $1 AND sequence > $2 AND sequence <= $3 "
        "AND (kind IN ('decision', 'refusal', 'act') OR kind = 'end' AND decision_sequence IS NULL) ORDER BY sequence",
        spool,
        after,
        until,
    )
