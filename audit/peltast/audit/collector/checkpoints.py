"""Signing the tree, and bringing what was signed to where it is kept besides the store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import structlog

from peltast.audit.checkpoint import Signer
from peltast.audit.sinks import Published, Sink, SinkFailed
from peltast.audit.store.errors import DATABASE_ERRORS
from peltast.authz._engine import tree_root

__all__ = ["Checkpoints", "Publisher", "sign_tree"]

SIGN_SECONDS = 60.0
_LOOK_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_LAST_SECONDS = 1.0
_AT_A_TIME = 100

_STORE_AWAY = (OSError, *DATABASE_ERRORS)

log = structlog.get_logger()

Pool: TypeAlias = "asyncpg.Pool[Any]"


async def sign_tree(pool: Pool, signer: Signer) -> bool:
    """Signs the tree, and stores that, unless the last checkpoint is of this tree. Tells whether it did."""
    async with pool.acquire() as connection:
        tree = await connection.fetchrow("SELECT size, frontier FROM tree")
        last = await connection.fetchrow("SELECT size, root FROM checkpoints ORDER BY size DESC LIMIT 1")
        assert tree is not None, "the migration inserts it"
        size: int = tree["size"]
        root = tree_root(size, tree["frontier"])
        if last is not None and (last["size"] > size or (last["size"] == size and last["root"] != root)):
            log.error("the tree is not the one that was signed", size=size, signed=last["size"])
        grown = size > 0 and (last is None or last["size"] != size)
        if grown:
            await connection.execute(
                "INSERT INTO checkpoints (size, root, note) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
                size,
                root,
                signer.sign(size, root),
            )
        return grown


class Publisher:
    """Brings checkpoints to one sink, each in its turn. How far it has got is kept in a file: the last note."""

    def __init__(self, name: str, sink: Sink, place: Path) -> None:
        self.name = name
        self._sink = sink
        self._place = place

    async def catch_up(self, pool: Pool) -> None:
        """Brings everything that the sink does not have yet.

        Raises:
            SinkFailed: see there. What was brought until then is not brought again.
        """
        size = await self._begin(pool)
        while rows := await pool.fetch(
            "SELECT size, root, time, note FROM checkpoints WHERE size > $1 ORDER BY size LIMIT $2", size, _AT_A_TIME
        ):
            for row in rows:
                await self._sink.put(Published(row["size"], row["root"], row["time"], row["note"]))
                self._remember(row["note"])
                size = row["size"]

    async def _begin(self, pool: Pool) -> int:
        """The size of the last checkpoint that was brought, if the store still has it; else all are to be brought.

        After a backup was restored, another tree may grow: it is brought, too.
        """
        with contextlib.suppress(FileNotFoundError):
            note = self._place.read_text()
            return await pool.fetchval("SELECT size FROM checkpoints WHERE note = $1", note) or 0
        return 0

    def _remember(self, note: str) -> None:
        self._place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self._place.with_suffix(".new")
        temporary.write_text(note)
        temporary.replace(self._place)

    async def keep_up(self, pool: Pool) -> None:
        """Catches up for ever. A sink that fails is tried again, at longer and longer intervals, and told of."""
        pause = _LOOK_SECONDS
        while True:
            try:
                await self.catch_up(pool)
                pause = _LOOK_SECONDS
            except (SinkFailed, *_STORE_AWAY) as error:
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                log.warning("checkpoints cannot be published", sink=self.name, error=str(error), retry_seconds=pause)
            await asyncio.sleep(pause)


class Checkpoints:
    """Signs the tree when it has grown, at most once a minute."""

    def __init__(self, pool: Pool, signer: Signer, publishers: Sequence[Publisher]) -> None:
        self._pool = pool
        self._signer = signer
        self._publishers = publishers

    async def run(self) -> None:
        """Signs and publishes for ever."""
        async with asyncio.TaskGroup() as group:
            for publisher in self._publishers:
                group.create_task(publisher.keep_up(self._pool))
            while True:
                # What comes after a while of nothing is signed at once.
                grown = await self._sign()
                await asyncio.sleep(SIGN_SECONDS if grown else _LOOK_SECONDS)

    async def finish(self) -> None:
        """Signs what has come since, and gives each sink a moment to take it."""
        await self._sign()
        await asyncio.gather(*map(self._last, self._publishers))

    async def _sign(self) -> bool:
        try:
            return await sign_tree(self._pool, self._signer)
        except _STORE_AWAY as error:
            log.warning("the tree cannot be signed", error=str(error))
            return False

    async def _last(self, publisher: Publisher) -> None:
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                await publisher.catch_up(self._pool)
        except (SinkFailed, TimeoutError, *_STORE_AWAY) as error:
            log.warning("checkpoints are not published", sink=publisher.name, error=str(error) or "it takes too long")
