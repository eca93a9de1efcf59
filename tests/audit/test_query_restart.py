"""Following a store whose database is killed and started again."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from support.running import eventually
from support.starts import take_in

from peltast.audit.query import read
from peltast.audit.query.query import Query
from peltast.audit.store.embedded import SUPERUSER, EmbeddedPostgres
from peltast.audit.store.migrate import AUDITOR_ROLE, migrate


@contextmanager
def running(server: EmbeddedPostgres) -> Iterator[None]:
    server.remove_stale_lock()
    with subprocess.Popen(server.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


async def store(server: EmbeddedPostgres, spool: Any, principal: str) -> None:
    """Stores what the spool holds, as soon as the server takes connections."""

    async def stored() -> bool:
        try:
            connection = await asyncpg.connect(server.url(SUPERUSER))
        except (OSError, asyncpg.CannotConnectNowError):
            return False
        await migrate(connection)
        await take_in(connection, spool.id, principal, spool.frames())
        await connection.close()
        return True

    await eventually(stored, "the spool is stored")


async def test_following_goes_on_whatever_a_database_that_goes_away_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "AWAY_SECONDS", 0)
    errors = iter(
        [
            ConnectionRefusedError("nobody listens"),
            asyncpg.CannotConnectNowError("the database system is starting up"),
            asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
            asyncpg.InterfaceError("connection is closed"),
            asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress"),
            LookupError("the last"),
        ]
    )

    def connect() -> AbstractAsyncContextManager[asyncpg.Connection]:
        raise next(errors)

    with pytest.raises(LookupError, match="the last"):
        await anext(read.follow(connect, Query(limit=None), -1))


async def test_following_goes_on_when_the_database_was_killed(
    sockets: Path, tmp_path: Path, spool: Any, principal: str
) -> None:
    server = EmbeddedPostgres(tmp_path / "data", sockets)
    await server.prepare()

    @asynccontextmanager
    async def connect() -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(server.url(AUDITOR_ROLE))
        try:
            yield connection
        finally:
            await connection.close()

    found: list[str] = []

    async def follow() -> None:
        async for row in read.follow(connect, Query(columns=("path",), limit=None), -1):
            found.append(row["path"])  # noqa: PERF401 - as they come

    for number in range(3):
        spool.append(path=f"/{number}", effect="allow")
        with running(server):
            await store(server, spool, principal)
            if number == 0:
                following = asyncio.create_task(follow())
            await eventually(lambda: len(found) > number, f"row {number}")  # noqa: B023
    assert not following.done()
    following.cancel()
    assert found == ["/0", "/1", "/2"]
