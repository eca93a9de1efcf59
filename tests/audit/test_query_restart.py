"""Following a store whose database is killed and started again."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
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
