"""Partitions of ``records``, a day each, made ahead of the records."""

from __future__ import annotations

import asyncio
from typing import Any, Never

import asyncpg
import structlog

from peltast.audit.store.errors import DATABASE_ERRORS

__all__ = ["ensure_partitions", "keep_partitions"]

EVERY_SECONDS = 3600.0
RETRY_SECONDS = 5.0

log = structlog.get_logger()


async def ensure_partitions(pool: asyncpg.Pool[Any] | asyncpg.Connection[Any]) -> int:
    """Makes what is missing from two days ago to seven days ahead, and gives how many that were.

    Records of other days go to ``records_default``. So do those of a day that has no partition yet, which move to it
    when it is made.
    """
    made: int = await pool.fetchval("SELECT public.ensure_partitions()")
    return made


async def keep_partitions(pool: asyncpg.Pool[Any]) -> Never:
    """Makes partitions now and each hour, for ever. There is time to try again: they are made a week ahead."""
    while True:
        try:
            if made := await ensure_partitions(pool):
                log.info("partitions made", number=made)
            await asyncio.sleep(EVERY_SECONDS)
        except (OSError, *DATABASE_ERRORS) as error:
            log.warning("partitions not made", error=str(error))
            await asyncio.sleep(RETRY_SECONDS)
