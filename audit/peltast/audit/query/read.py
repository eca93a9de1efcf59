"""Asking the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeAlias

import asyncpg

from peltast.audit.query import sql
from peltast.audit.query.query import Cursor, Query
from peltast.audit.query.sql import EPOCH

__all__ = ["counts", "follow", "last_leaf", "leaf_before", "page", "stream"]

Connection: TypeAlias = "asyncpg.Connection[Any]"
Connect: TypeAlias = Callable[[], AbstractAsyncContextManager[Connection]]

POLL_SECONDS = 0.1
AWAY_SECONDS = 0.5
BATCH = 1000

_AWAY = (
    *(OSError, asyncpg.InterfaceError, asyncpg.InternalClientError),
    *(asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError),
)
"""What a database that ends, or is not up yet, does to a connection."""


def stream(connection: Connection, query: Query) -> AsyncGenerator[asyncpg.Record]:
    """The rows of `query` through a cursor in the server: memory does not grow with their number."""
    return _streamed(connection, sql.rows(query))


async def page(connection: Connection, query: Query) -> tuple[list[asyncpg.Record], Cursor | None]:
    """The rows of `query`, and after which one the next page begins, if there is more."""
    if query.limit is None:
        raise ValueError("a page has a limit")
    statement = sql.rows(replace(query, limit=query.limit + 1))
    rows = await connection.fetch(statement.text, *statement.arguments)
    if len(rows) <= query.limit:
        return rows, None
    rows.pop()
    return rows, Cursor(rows[-1]["time_us"], rows[-1]["leaf"]) if rows else None


def counts(connection: Connection, query: Query) -> AsyncGenerator[asyncpg.Record]:
    """The counts that `query` asks for, each a row of its columns and `count`."""
    return _streamed(connection, sql.counts(query))


async def _streamed(connection: Connection, statement: sql.Statement) -> AsyncGenerator[asyncpg.Record]:
    async with connection.transaction(readonly=True):
        async for row in connection.cursor(statement.text, *statement.arguments, prefetch=BATCH):
            yield row


async def last_leaf(connection: Connection) -> int:
    """The last leaf of the tree; -1 in an empty one."""
    return int(await connection.fetchval("SELECT size FROM tree")) - 1


async def leaf_before(connection: Connection, since_ns: int) -> int:
    """The last leaf before all whose time is `since_ns` or later."""
    since = EPOCH + timedelta(microseconds=since_ns // 1000)
    first = await connection.fetchval("SELECT min(leaf) FROM records WHERE time >= $1", since)
    return await last_leaf(connection) if first is None else int(first) - 1


async def follow(connect: Connect, query: Query, after: int | None = None) -> AsyncGenerator[asyncpg.Record]:
    """Rows as they are committed, from leaf `after` on, or from now on; for ever.

    Leaves are committed in their order, so that nothing comes late. A database that goes away is asked again.
    """
    while True:
        try:
            async with connect() as connection:
                if after is None:
                    after = await last_leaf(connection)
                async for rows, reached in _batches(connection, query, after):
                    for row in rows:
                        yield row
                    after = reached
        except _AWAY:
            await asyncio.sleep(AWAY_SECONDS)


async def _batches(connection: Connection, query: Query, after: int) -> AsyncIterator[tuple[list[asyncpg.Record], int]]:
    """Batches of new rows, each with the leaf up to which everything was seen."""
    while True:
        last = await last_leaf(connection)
        while after < last:
            until = min(last, after + BATCH)
            statement = sql.after_leaf(replace(query, limit=None), after, until + 1)
            yield await connection.fetch(statement.text, *statement.arguments), until
            after = until
        await asyncio.sleep(POLL_SECONDS)
